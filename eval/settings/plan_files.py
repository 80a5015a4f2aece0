"""The setting `plans`: files that `Patch.save` wrote, or what such a file held, each an arm of its own.

The settings keep what a file holds, so that a run's files need nothing else. Imports no torch: whether a config is a
plan that sa_patch can make is judged with the arms.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sa_eval.messages import one_line, shown
from sa_eval.settings.named_arms import NAME
from sa_eval.settings.values import SettingsError

FILE = "sa_patch.json"  # in a folder
MOST_BYTES = 2**22
UNUSABLE = re.compile(r"[^A-Za-z0-9.+_-]+")
LONGEST = 56  # characters of a name, which gets a prefix


@dataclass(frozen=True)
class PlanFile:
    """One plan: `config` is the JSON of its file."""

    name: str
    config: Mapping[str, Any]

    def to_dict(self) -> dict[str, object]:
        return {"name": self.name, "config": dict(self.config)}


def checked(name: str, value: Any) -> tuple[PlanFile, ...]:
    """Plans from paths, or from entries `name, config` as a saved run has them.

    Raises:
        SettingsError: for a file that cannot be read or is no patch config, and for two plans of one name.
    """
    entries = list(value) if isinstance(value, (list, tuple)) else [value]
    found = tuple(_entry(name, entry) for entry in entries)
    names: set[str] = set()
    for plan in found:
        if plan.name.casefold() in names:  # names are file names, and some file systems don't tell Sa from sa
            raise SettingsError(f"{name} holds two plans called {plan.name!r}: rename a file, or give one of them")
        names.add(plan.name.casefold())
    return found


def _entry(name: str, entry: Any) -> PlanFile:
    if isinstance(entry, (str, Path)) and str(entry):
        return _read(Path(entry).expanduser())
    if not isinstance(entry, Mapping) or entry.keys() != {"name", "config"} or not isinstance(entry["config"], Mapping):
        raise SettingsError(f"{name} takes files or folders that hold {FILE}, found {shown(entry)}")
    if not isinstance(entry["name"], str) or NAME.fullmatch(entry["name"]) is None:
        raise SettingsError(f"{name}: {shown(entry['name'])} cannot name a plan: letters, digits and .+_- only")
    return PlanFile(entry["name"], entry["config"])


def _read(path: Path) -> PlanFile:
    try:
        file = path / FILE if path.is_dir() else path
        with file.open("rb") as stream:
            content = stream.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise ValueError(f"it is larger than {MOST_BYTES // 2**20} MiB")
        config = json.loads(content)
        if not isinstance(config, dict) or "version" not in config:
            raise ValueError("it holds no version; Patch.save and sa-eval calibrate write such files")
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        raise SettingsError(f"plan {shown(str(path))} cannot be used: {reason}") from error
    return PlanFile(_name(file), config)


def _name(file: Path) -> str:
    """The file's stem, or its folder's name where the file has the name that every plan has."""
    own = file.absolute().parent.name if file.name == FILE else file.stem
    return UNUSABLE.sub("-", own).strip("-.")[:LONGEST] or "unnamed"
