"""Owns the settings of a run: one frozen dataclass that flags and YAML both fill. Imports no torch.

Every field carries its own help, bounds and choices, so the command line, the YAML reader and the documentation
cannot drift apart. Unknown keys and wrong types are fatal: a typo must never silently run another experiment.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from sa_eval.messages import shown
from sa_eval.settings import layer_sets, named_arms, published
from sa_eval.settings.modes import ARM_MODES, registered_modes
from sa_eval.settings.values import SettingsError, checked_item, checked_list, nearest


def setting(default: Any, help: str, **rule: Any) -> Any:
    """A dataclass field with its rule: kind, many, minimum, maximum, choices, optional, yaml_only."""
    return field(default=default, metadata={"help": help, **rule})


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
        "offline (the bundled suite), ruler, names from --list-tasks, any lm-eval task or group, or a task's YAML file",
        many=True,
    )
    num_samples: int | str = setting(
        10, "documents per task and length; `all` runs lm-eval tasks whole", kind="samples", minimum=1
    )
    num_fewshot: int | None = setting(
        None,
        "solved examples before each question of lm-eval tasks (default: the task's own number, which is kept where it "
        "is fixed at 0); drawn with doc_seed",
        kind=int,
        minimum=0,
        maximum=1000,
        optional=True,
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
    sinks: tuple[int | float, ...] = setting(
        (0,), "first tokens always visible (tokens, or a fraction of the prompt)", kind="amount", many=True, minimum=0
    )
    local: tuple[int | float, ...] = setting(
        (0,), "last keys always visible (tokens, or a fraction)", kind="amount", many=True, minimum=0
    )
    dense_layers: tuple[layer_sets.LayerSet, ...] = setting(
        ((),),
        "layers left full: numbers (negative ones count from the end) and slices (1::2: every second one from the "
        "second) joined by commas; / sets several sets apart, as in none/0,-1/1::2; in YAML a list, or a list of lists",
        kind="layers",
        many=True,
    )
    dense_below: tuple[int | str, ...] = setting(
        (0,), "prompts up to this length stay full; or `crossover`", kind="dense_below", many=True
    )
    decode: tuple[str, ...] = setting(
        ("full",), "what generated tokens see: full, sparse", choices=("full", "sparse"), many=True
    )
    form: tuple[str, ...] = setting(
        ("sliding",), "form of sa and sa+swa: sliding, bucket", choices=("sliding", "bucket"), many=True
    )
    horizon: tuple[str, ...] = setting(
        ("length",), "horizon of sa and sa+swa: length, dyadic", choices=("length", "dyadic"), many=True
    )
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
    tp: bool = setting(
        False,
        "tensor parallel: the processes of torchrun or accelerate launch hold one model together, in place of a share "
        "of the documents each",
        kind=bool,
    )
    use_safetensors: bool = setting(
        True,
        "safetensors weights only; --no-use-safetensors reads pytorch_model.bin instead, tensors alone, never code",
        kind=bool,
    )
    trust_remote_code: bool = setting(False, "run code that a model brings along, on this machine", kind=bool)
    confirm_unsafe_code: bool = setting(
        False, "run programs that the model writes, on this machine: humaneval and its like ask for it", kind=bool
    )
    speed: bool = setting(True, "measure prefill latency", kind=bool)
    arms: tuple[named_arms.NamedArm, ...] = setting(
        (),
        "named arms with options of their own, besides `modes` (instead of them where `modes` is left out)",
        kind="arms",
        yaml_only=True,
    )
    published: Mapping[str, Any] | None = setting(
        None, "numbers to compare with, and their source", kind="published", optional=True, yaml_only=True
    )
    out: str | None = setting(None, "run directory (default: runs/<time>-<model>)", optional=True)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as YAML and JSON hold them; `settings_from` takes them back."""
        return {name: _plain(getattr(self, name)) for name in SETTINGS}


def _plain(value: Any) -> Any:
    if isinstance(value, named_arms.NamedArm):
        value = value.to_dict()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


SETTINGS = {item.name: item for item in fields(Settings)}
FLAGS = {name: item for name, item in SETTINGS.items() if not item.metadata.get("yaml_only")}
if any(item.default is MISSING for item in SETTINGS.values()):
    raise TypeError("every setting needs a default")


def settings_from(given: Mapping[str, Any]) -> Settings:
    """Checked settings from plain values (YAML or flags); anything not given keeps its default."""
    unknown = [key for key in given if key not in SETTINGS]
    if unknown:
        raise SettingsError(f"unknown setting {shown(unknown[0])}: {nearest(str(unknown[0]), list(SETTINGS))}")
    values = {key: _checked(key, value) for key, value in given.items()}
    if values.get("arms"):
        values.setdefault("modes", ("full",))
    checked = Settings(**values)
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
    if rule.get("kind") == "published":
        return published.checked(value)
    if rule.get("kind") == "arms":
        return named_arms.checked(value, checked_option)
    if rule.get("kind") == "layers":
        return layer_sets.sets_from(name, value)
    if rule.get("many"):
        return checked_list(name, value, rule)
    if isinstance(value, (list, tuple)):
        raise SettingsError(f"{name} takes one value, found a list: {shown(list(value))}")
    return checked_item(name, value, rule)


def checked_option(name: str, value: Any) -> tuple[Any, ...]:
    """The values of one option, as the setting of that name takes them."""
    return _checked(name, value)


def _check_modes(settings: Settings) -> None:
    for mode in (*settings.modes, *(entry.mode for entry in settings.arms)):
        if mode not in ARM_MODES and mode not in registered_modes():
            raise SettingsError(f"mode {shown(mode)} is not known: {nearest(mode, list(ARM_MODES))}")
    if settings.num_samples == "all" and "offline" in settings.tasks:
        raise SettingsError(
            "num_samples 'all' needs tasks with a fixed set of documents; the offline suite is endless: give a number"
        )
