"""What `sa-eval calibrate` can be asked: the settings it shares with a run, and its own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from sa_eval.settings.config import Settings, settings_from
from sa_eval.settings.setting import setting, settings_of
from sa_eval.settings.values import SettingsError

# Settings of a run that mean the same here.
SHARED = (
    *("model", "revision", "threads", "device", "dtype", "device_map"),
    *("use_safetensors", "trust_remote_code", "out"),
)
FREE = ("out", "threads", "device_map")  # what may differ when a calibration is continued


def _text(name: str, value: Any) -> tuple[str, ...]:
    files = [value] if isinstance(value, str) else list(value)
    if not files or not all(isinstance(file, str) and file for file in files):
        raise SettingsError(f"{name} takes UTF-8 text files")
    return tuple(files)


def _passages(name: str, value: Any) -> tuple[int, ...]:
    """Three numbers, any of them twice."""
    entries = value if isinstance(value, (list, tuple)) else [value]
    items = [part.strip() for entry in entries for part in str(entry).split(",") if part.strip()]
    if len(items) != 3 or not all(item.isdecimal() and 1 <= int(item) <= 10_000 for item in items):
        raise SettingsError(f"{name} takes three numbers from 1 on, to fit, choose and report with, as in 2,4,6")
    return tuple(map(int, items))


def _target(name: str, value: Any) -> float:
    try:
        found = float(value)
    except (TypeError, ValueError):
        found = math.nan
    if isinstance(value, bool) or not 0 < found < math.inf:
        raise SettingsError(f"{name} must be a number of nats above 0, found {value!r}")
    return found


@dataclass(frozen=True)
class CalibrationSettings:
    """What is calibrated, and how; `of` holds what is shared with a run."""

    of: Settings
    text: tuple[str, ...] = setting(
        (),
        "UTF-8 text files like those the model will read (default: none, they are needed)",
        read=_text,
        kind="files",
        many=True,
    )
    window: int | None = setting(
        None,
        "keys per query, the mean over all layers; with --target-kl at most (default: none, it is needed)",
        minimum=12,
    )
    target_kl: float | None = setting(
        None,
        "find the cheapest plan whose KL to full is at or below X nats on every kind of passage (default: none, the "
        "budget is --window)",
        read=_target,
        kind="number",
    )
    router_cost: Literal["reported", "charged"] = setting(
        "reported", "reported: choosing keys is free; charged: --window pays for it, so recipes compete at equal cost"
    )
    lengths: tuple[int, ...] = setting(
        (1024,),
        "prompt lengths at which the budget holds; passages have the first one",
        minimum=256,
        also=("--length",),
    )
    passages: tuple[int, ...] = setting(
        (2, 4, 6),
        "passages of every stratum to fit, to choose and to report with",
        read=_passages,
        kind="integer",
        many=True,
    )
    swaps: int = setting(12, "changes of the plan to try on the passages to choose with", maximum=10_000)
    seed: int = setting(0, "which passages are used for what, and where the needles are")

    def to_dict(self) -> dict[str, object]:
        shared = {name: value for name, value in self.of.to_dict().items() if name in SHARED}
        own = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        del own["of"]
        return {**shared, **own}


def calibration_settings(given: Mapping[str, Any]) -> CalibrationSettings:
    """Checked settings from flags or from a file's plain values; None counts as not given.

    Raises:
        SettingsError: for a value that cannot be used, or one that is missing.
    """
    known, values = settings_of(CalibrationSettings), {key: one for key, one in given.items() if one is not None}
    own = {name: known[name].checked(value) for name, value in values.items() if name in known}
    asked = CalibrationSettings(settings_from({key: one for key, one in values.items() if key not in known}), **own)
    if not asked.text:
        raise SettingsError(
            "calibrate needs texts like those the model will read: give UTF-8 files with --text FILE ..."
        )
    if asked.window is None:
        raise SettingsError("calibrate needs the budget: give keys per query, the mean over layers, with --window N")
    return asked
