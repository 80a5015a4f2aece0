"""Owns the settings of a run: one frozen dataclass that flags and YAML both fill. Imports no torch.

Every field carries its own help, bounds and choices, so the command line, the YAML reader and the documentation
cannot drift apart. Unknown keys and wrong types are fatal: a typo must never silently run another experiment.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any

from sa_eval.messages import shown


class SettingsError(ValueError):
    """A setting that cannot be used; the message says what was asked, what was found and what to do."""


LARGEST = 2**31 - 1  # no tensor here is longer; beyond it torch fails in places that say nothing


def setting(default: Any, help: str, **rule: Any) -> Any:
    """A dataclass field with its rule: kind, many, minimum, maximum, choices, optional."""
    return field(default=default, metadata={"help": help, **rule})


# An arm's name -> the sa_patch mode it runs and the variant options it adds.
ARM_MODES: dict[str, tuple[str, dict[str, Any]]] = {
    "full": ("full", {}),
    "swa": ("swa", {}),
    "sa": ("sa", {}),
    "sa-bucket": ("sa", {"form": "bucket"}),
    "sa-circular": ("sa", {"circular": True}),
    "sa-dyadic": ("sa", {"horizon": "dyadic"}),
    "sa-dyadic-bucket": ("sa", {"horizon": "dyadic", "form": "bucket"}),
    "sa+swa": ("sa+swa", {}),
    "moba": ("moba", {}),
}
MODE_HELP = {
    "full": "the model's own attention, untouched: the baseline of every comparison (always included)",
    "swa": "sliding window: the last `window` keys",
    "sa": "stochastic attention: `window` keys around the query in a random order of the tokens",
    "sa-bucket": "stochastic attention, the random order cut into buckets (faster; over budget on short prompts)",
    "sa-circular": "stochastic attention with ring distance in the random order",
    "sa-dyadic": "stochastic attention whose keys don't depend on the prompt's length (each power of two permuted)",
    "sa-dyadic-bucket": "sa-dyadic, cut into buckets",
    "sa+swa": "half the budget local, half stochastic, no key twice (training-free union)",
    "moba": "blocks of keys chosen by content, MoBA's rule (untrained here: it was made for continued training)",
}
DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Settings:
    """Everything that decides what a run computes, and where."""

    model: str = setting("qwen3-tiny", "bundled model (qwen3-tiny, qwen3-moe-tiny), a local folder, or a hub id")
    revision: str | None = setting(None, "revision of a hub model", optional=True)
    modes: tuple[str, ...] = setting(("full", "swa", "sa", "moba"), "attention variants to compare", many=True)
    window: tuple[int | float, ...] = setting(
        (64, 256),
        "budgets: keys per query (whole number), or a fraction of the prompt (0 < x < 1)",
        kind="amount",
        many=True,
        minimum=1,
    )
    lengths: tuple[int, ...] = setting((512, 1024), "context lengths in tokens", kind=int, many=True, minimum=16)
    tasks: tuple[str, ...] = setting(
        ("offline",),
        "offline (the bundled suite), names from --list-tasks, any lm-eval task, or a task's YAML file",
        many=True,
    )
    num_samples: int | str = setting(
        10, "documents per task and length; `all` runs lm-eval tasks whole", kind="samples", minimum=1
    )
    seeds: tuple[int, ...] = setting(
        (0, 1), "seeds of the stochastic arms; one row, averaged per document", kind=int, many=True, minimum=0
    )
    doc_seed: int = setting(0, "seed of the generated documents", kind=int, minimum=0)
    dense_tail: tuple[int, ...] = setting(
        (0,),
        "last prompt queries that see everything; several values are several sets of arms",
        kind=int,
        many=True,
        minimum=0,
    )
    sinks: int | float = setting(0, "first tokens always visible", kind="amount", minimum=0)
    local: int | float = setting(0, "last keys always visible", kind="amount", minimum=0)
    dense_layers: tuple[int, ...] = setting(
        (), "layers left full; negative ones count from the end", kind=int, many=True, minimum=None
    )
    dense_below: int | str = setting(0, "prompts up to this length stay full; or `crossover`", kind="dense_below")
    decode: str = setting("full", "what generated tokens see", choices=("full", "sparse"))
    budget: str = setting(
        "pairs", "pairs: variants matched by measured keys per query; nominal: by formula", choices=("pairs", "nominal")
    )
    kernel: str = setting("auto", "sa_patch kernel")
    batch_size: int | None = setting(
        None,
        "documents per forward pass (default: 16; 2 on a CPU, where larger batches only leave the caches)",
        kind=int,
        minimum=1,
        optional=True,
    )
    threads: int | None = setting(
        None,
        "CPU threads of torch; 1 when other jobs keep the machine busy (default: what it may use)",
        kind=int,
        minimum=1,
        maximum=1024,  # OpenMP ends the process when it cannot make them
        optional=True,
    )
    device: str = setting("auto", "auto, cpu, cuda, cuda:1, mps ...")
    dtype: str = setting("auto", "dtype of the weights; auto: the checkpoint's, float32 on a CPU", choices=DTYPES)
    device_map: str | None = setting(None, "accelerate's device map, for models larger than one device", optional=True)
    use_safetensors: bool = setting(
        True,
        "safetensors weights only; --no-use-safetensors reads pytorch_model.bin instead, tensors alone, never code",
        kind=bool,
    )
    trust_remote_code: bool = setting(False, "run code that a model brings along, on this machine", kind=bool)
    speed: bool = setting(True, "measure prefill latency", kind=bool)
    out: str | None = setting(None, "run directory (default: runs/<time>-<model>)", optional=True)

    def to_dict(self) -> dict[str, Any]:
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


SETTINGS = {item.name: item for item in fields(Settings)}
if any(item.default is MISSING for item in SETTINGS.values()):
    raise TypeError("every setting needs a default")


def nearest(name: str, valid: Sequence[str]) -> str:
    """The end of an error message: the closest valid name, or all of them when they are few."""
    close = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"valid: {', '.join(sorted(valid))}" if len(valid) <= 40 else "see --list-tasks"


def settings_from(given: Mapping[str, Any]) -> Settings:
    """Checked settings from plain values (YAML or flags); anything not given keeps its default."""
    unknown = [key for key in given if key not in SETTINGS]
    if unknown:
        raise SettingsError(f"unknown setting {shown(unknown[0])}: {nearest(str(unknown[0]), list(SETTINGS))}")
    checked = Settings(**{key: _checked(key, value) for key, value in given.items()})
    _check_modes(checked)
    return checked


def to_yaml(settings: Settings) -> str:
    import yaml

    return yaml.safe_dump(settings.to_dict(), sort_keys=False, default_flow_style=None)


def _checked(name: str, value: Any) -> Any:
    rule = SETTINGS[name].metadata
    if value is None:
        if rule.get("optional"):
            return None
        raise SettingsError(f"{name} is empty: give a value or leave the key out")
    if not rule.get("many"):
        if isinstance(value, (list, tuple)):
            raise SettingsError(f"{name} takes one value, found a list: {shown(list(value))}")
        return _checked_item(name, value, rule)
    parts = list(value) if isinstance(value, (list, tuple)) else [value]
    items = [part for entry in parts for part in (entry.split(",") if isinstance(entry, str) else [entry])]
    result = tuple(
        _checked_item(name, item.strip() if isinstance(item, str) else item, rule) for item in items if item != ""
    )
    if not result and name != "dense_layers":
        raise SettingsError(f"{name} is an empty list: give at least one value")
    doubled = sorted(str(item) for item, count in Counter(result).items() if count > 1)
    if doubled:
        raise SettingsError(f"{name} holds {doubled[0][:100]} twice")
    return result


def _checked_item(name: str, value: Any, rule: Mapping[str, Any]) -> Any:
    kind = rule.get("kind", str)
    if kind is bool:
        return _boolean(name, value)
    if kind is str:
        if not isinstance(value, str) or not value:
            raise SettingsError(f"{name} must be text, found {shown(value)}")
    elif kind in ("samples", "dense_below") and value in ("all" if kind == "samples" else "crossover",):
        return value
    else:
        value = _number(name, value, fraction=kind == "amount")
        minimum = rule.get("minimum", 0)
        if minimum is not None and value < minimum and not (kind == "amount" and 0 < value < 1):
            raise SettingsError(f"{name} must be at least {minimum}, found {shown(value)}")
        maximum = rule.get("maximum", LARGEST)
        if abs(value) > maximum:
            raise SettingsError(f"{name} must be at most {maximum:,}, found {shown(value)}")
    if "choices" in rule and value not in rule["choices"]:
        raise SettingsError(f"{name} {shown(value)} is not known: {nearest(str(value), rule['choices'])}")
    return value


def _boolean(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise SettingsError(f"{name} must be true or false, found {shown(value)}")
    return value


def _number(name: str, value: Any, *, fraction: bool) -> int | float:
    wanted = "a whole number, or a fraction between 0 and 1" if fraction else "a whole number"
    if isinstance(value, str):
        try:
            value = float(value) if "." in value or "e" in value.lower() else int(value)
        except ValueError:
            raise SettingsError(f"{name} must be {wanted}, found {shown(value)}") from None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise SettingsError(f"{name} must be {wanted}, found {shown(value)}")
    if isinstance(value, float):
        if fraction and 0 < value < 1:
            return value
        if fraction or not value.is_integer():  # is 1.0 one key or all of them? ask
            raise SettingsError(f"{name} must be {wanted}, found {value}")
        value = int(value)
    return value


def _check_modes(settings: Settings) -> None:
    for mode in settings.modes:
        if mode not in ARM_MODES and mode not in registered_modes():
            raise SettingsError(f"mode {shown(mode)} is not known: {nearest(mode, list(ARM_MODES))}")
    if settings.num_samples == "all" and "offline" in settings.tasks:
        raise SettingsError(
            "num_samples 'all' needs tasks with a fixed set of documents; the offline suite is endless: give a number"
        )


def registered_modes() -> tuple[str, ...]:
    """Modes that sa_patch knows besides ours: a variant added there runs here by its name (imports torch)."""
    import sa_patch

    return tuple(sa_patch.VARIANTS)
