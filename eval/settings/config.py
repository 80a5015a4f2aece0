"""The settings of a run: one frozen dataclass that flags and files both fill.

Its fields and the options that sa_patch's variants declare carry their own help, bounds and choices. Unknown keys and
wrong types are fatal: a typo must never silently run another experiment.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from sa_eval.messages import shown
from sa_eval.settings import named_arms, plan_files, published
from sa_eval.settings.declared import Option, declared
from sa_eval.settings.setting import Setting, setting, settings_of
from sa_eval.settings.values import SettingsError, nearest

DEFAULTS: dict[str, tuple[int, ...]] = {"window": (64, 256)}  # where a run's default is not the option's own


@dataclass(frozen=True)
class Settings:
    """Everything that decides what a run computes, and where.

    `options` holds every option of sa_patch's variants: a tuple of values to compare, or one value where a run cannot
    compare several (budget). Files and flags know them by their own names, beside the fields here.
    """

    model: str = setting("qwen3-tiny", "bundled model (qwen3-tiny, qwen3-moe-tiny), a local folder, or a hub id")
    revision: str | None = setting(None, "revision of a hub model")
    modes: tuple[str, ...] = setting(("full", "swa", "sa", "moba"), "attention variants to compare")
    lengths: tuple[int, ...] = setting((512, 1024), "context lengths in tokens", minimum=16)
    tasks: tuple[str, ...] = setting(
        ("offline",),
        "offline (the bundled suite), ruler, names from --list-tasks, any lm-eval task or group, or a task's YAML file",
    )
    num_samples: int | Literal["all"] = setting(
        10, "documents per task and length; `all` runs lm-eval tasks whole", minimum=1
    )
    num_fewshot: int | None = setting(
        None,
        "solved examples before each question of lm-eval tasks (default: the task's own number, which is kept where it "
        "is fixed at 0); drawn with doc_seed",
        maximum=1000,
    )
    seeds: tuple[int, ...] = setting((0, 1), "seeds of the stochastic arms; one row, averaged per document")
    doc_seed: int = setting(0, "seed of the generated documents")
    options: Mapping[str, Any] = field(default_factory=lambda: {item.name: item.default for item in option_settings()})
    kernel: str = setting("auto", "sa_patch kernel")
    batch_size: int | None = setting(
        None,
        "documents per forward pass (default: 16; on a CPU as many as hold 1,024 tokens, 2 to 16)",
        minimum=1,
    )
    threads: int | None = setting(
        None,
        "CPU threads of torch; 1 when other jobs keep the machine busy (default: what it may use)",
        minimum=1,
        maximum=1024,  # OpenMP ends the process when it cannot make them
    )
    device: str = setting("auto", "auto, cpu, cuda, cuda:1, mps ...")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = setting(
        "auto", "dtype of the weights; auto: the checkpoint's, float32 on a CPU"
    )
    device_map: str | None = setting(None, "accelerate's device map, for models larger than one device")
    tp: bool = setting(
        False,
        "tensor parallel: the processes of torchrun or accelerate launch hold one model together, in index of a share "
        "of the documents each",
    )
    use_safetensors: bool = setting(
        True,
        "safetensors weights only; --no-use-safetensors reads pytorch_model.bin instead, tensors alone, never code",
    )
    trust_remote_code: bool = setting(False, "run code that a model brings along, on this machine")
    confirm_unsafe_code: bool = setting(
        False, "run programs that the model writes, on this machine: humaneval and its like ask for it"
    )
    speed: bool = setting(True, "measure prefill latency")
    arms: tuple[named_arms.NamedArm, ...] = setting(
        (),
        "named arms with options of their own, besides `modes` (instead of them where `modes` is left out)",
        read=lambda name, value: named_arms.checked(value, option_settings()),
        in_files_only=True,
    )
    plans: tuple[plan_files.PlanFile, ...] = setting(
        (),
        "plans as arms besides `modes` (instead of them where `modes` is left out): files that Patch.save or sa-eval "
        "calibrate wrote, or their folders",
        read=plan_files.checked,
        kind="files",
        many=True,
        also=("--plan",),
    )
    published: Mapping[str, object] | None = setting(
        None,
        "numbers to compare with, and their source",
        optional=True,
        read=lambda name, value: published.checked(value, list(declared().modes)),
        in_files_only=True,
    )
    out: str | None = setting(None, "run directory (default: runs/<time>-<model>)")

    def to_dict(self) -> dict[str, object]:
        """Plain values, as YAML and JSON hold them; `settings_from` takes them back."""
        return {name: _plain(self.options.get(name, getattr(self, name, None))) for name in known_settings()}


def option_settings() -> list[Setting]:
    """The options of all variants as settings of a run, which has `seeds` of its own."""
    return [Setting.of_option(item, _default(item)) for name, item in declared().options.items() if name != "seed"]


def _default(option: Option) -> Any:
    return DEFAULTS.get(option.name, (option.default,) if option.swept else option.default)


def known_settings() -> dict[str, Setting]:
    """Every setting of a run by name: the fields, with the options where `options` stands.

    Raises:
        TypeError: for a variant whose option has the name of another setting.
    """
    own, options = settings_of(Settings), {item.name: item for item in option_settings()}
    for name in own.keys() & options.keys():
        owners = " and ".join(declared().options[name].owners)
        raise TypeError(f"option {name!r} of mode {owners} has the name of a setting")
    names = list(own)
    index = names.index("doc_seed") + 1
    return {name: (own | options)[name] for name in [*names[:index], *options, *names[index:]]}


def _plain(value: Any) -> Any:
    if isinstance(value, (named_arms.NamedArm, plan_files.PlanFile)):
        value = value.to_dict()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def settings_from(given: Mapping[str, Any]) -> Settings:
    """Checked settings from plain values (YAML or flags); anything not given keeps its default."""
    known = known_settings()
    unknown = [key for key in given if key not in known]
    if unknown:
        raise SettingsError(f"unknown setting {shown(unknown[0])}: {nearest(str(unknown[0]), list(known))}")
    values = {key: known[key].checked(value) for key, value in given.items()}
    if values.get("arms") or values.get("plans"):
        values.setdefault("modes", ("full",))
    options = Settings().options
    own = {name: value for name, value in values.items() if name not in options}
    checked = Settings(**own, options={name: values.get(name, default) for name, default in options.items()})
    _check_modes(checked)
    return checked


def to_yaml(settings: Settings) -> str:
    import yaml

    return yaml.safe_dump(settings.to_dict(), sort_keys=False, default_flow_style=None)


def _check_modes(settings: Settings) -> None:
    known = list(declared().modes)
    for mode in (*settings.modes, *(entry.mode for entry in settings.arms)):
        if mode not in known:
            raise SettingsError(f"mode {shown(mode)} is not known: {nearest(mode, known)}")
    if settings.num_samples == "all" and "offline" in settings.tasks:
        raise SettingsError(
            "num_samples 'all' needs tasks with a fixed set of documents; the offline suite is endless: give a number"
        )
