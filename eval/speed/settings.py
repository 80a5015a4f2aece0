"""What `sa-eval speed` can be asked: the settings it shares with a run, and its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from sa_eval.settings import presets
from sa_eval.settings.config import Settings, option_settings, settings_from
from sa_eval.settings.setting import setting, settings_of
from sa_eval.settings.values import SettingsError

# Settings of a run that mean the same here, besides the variants' options.
SHARED = (
    *("model", "revision", "modes", "plans", "lengths", "kernel"),
    *("batch_size", "threads", "device", "dtype", "device_map", "use_safetensors", "trust_remote_code", "out"),
)
DEFAULTS: dict[str, object] = {
    "modes": ("full", "swa", "sa", "sa-bucket", "moba"),
    "window": (128,),
    "lengths": (512, 1024, 2048),
    "batch_size": 1,
}


@dataclass(frozen=True)
class SpeedSettings:
    """How speed is measured, and on what: `of` holds what is shared with a run."""

    of: Settings
    new_tokens: int = setting(32, "tokens to time after the first one, for the decoding rate; 0: none", maximum=100_000)
    repeats: int = setting(5, "timed calls per arm and length; the median counts", minimum=1, maximum=1000)
    kernels: Literal["ran", "all"] = setting(
        "ran",
        "time each arm with the kernel that runs (ran), or beside it with every kernel that can run it on this device "
        "(all), for the best and the worst one; that takes as many times as long as there are kernels",
    )
    random_weights: bool = setting(
        False, "the model's shape with random weights, made on the device; no weights are fetched"
    )
    shape: str | None = setting(
        None,
        f"instead of --model: the shape in this config.json, or a shipped one by name ({', '.join(presets.shapes())}), "
        "with random weights",
    )
    cpu_time: bool = setting(
        False, "CPU time of this process instead of wall time: for busy machines, with --threads 1 only"
    )

    @property
    def longest(self) -> int:
        """Positions the longest call needs."""
        return max(self.of.lengths) + self.new_tokens

    @property
    def name(self) -> str:
        """What the result is called."""
        return str(self.shape or self.of.model)

    def to_dict(self) -> dict[str, object]:
        own = {name: value for name, value in asdict(self).items() if name != "of"}
        return {**{name: value for name, value in self.of.to_dict().items() if name in shared()}, **own}


def shared() -> list[str]:
    """The settings of a run that mean the same here."""
    return [*SHARED, *(setting.name for setting in option_settings())]


def speed_settings(given: Mapping[str, Any]) -> SpeedSettings:
    """Checked settings from flags; what is not given keeps its default.

    Raises:
        SettingsError: for a value that cannot be used, or two that contradict each other.
    """
    known = settings_of(SpeedSettings)
    defaults = {**DEFAULTS, "modes": ("full",)} if given.get("plans") and "modes" not in given else DEFAULTS
    of = settings_from({**defaults, **{name: value for name, value in given.items() if name not in known}})
    own = {name: known[name].checked(value) for name, value in given.items() if name in known}
    asked = SpeedSettings(of, **own)
    if asked.shape is not None:
        presets.shape_path(asked.shape)
        if "model" in given:
            raise SettingsError(
                "model and shape were both given: --shape FILE is a model of its own, with random weights; drop one"
            )
        asked = SpeedSettings(of, **{**own, "random_weights": True})
    if asked.random_weights and of.device_map is not None:
        raise SettingsError(
            "device_map spreads a checkpoint's weights; random ones are made on one device: use --device"
        )
    if asked.cpu_time and of.threads != 1:
        raise SettingsError(
            "cpu_time adds up the CPU time of all threads, which says nothing: give --threads 1 with it"
        )
    return asked
