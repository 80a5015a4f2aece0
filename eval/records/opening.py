"""Owns opening a run that was made before, to read it; whatever is missing is one message. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sa_eval.messages import one_line
from sa_eval.records.directory import RunDirectory
from sa_eval.settings.values import SettingsError

NEEDED = ("started", "settings", "model", "versions", "hardware", "arms", "tasks")


def open_run(path: str) -> tuple[RunDirectory, dict[str, Any]]:
    """A run directory and its manifest; the run may be unfinished, or still going on.

    Raises:
        SettingsError: there is no run, or its manifest cannot be read.
    """
    directory = RunDirectory(Path(path))
    if not directory.has("manifest.json"):
        raise SettingsError(f"{path} holds no run: it has no manifest.json; give a directory that `sa-eval run` made")
    try:
        manifest = directory.read_json("manifest.json")
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path} cannot be read: manifest.json is damaged ({one_line(error)})") from error
    missing = [name for name in NEEDED if not isinstance(manifest, dict) or name not in manifest]
    if missing:
        raise SettingsError(f"{path} cannot be read: manifest.json lacks {', '.join(missing)}")
    return directory, manifest


def differences(one: Any, other: Any, name: str = "") -> list[str]:
    """What two manifests' entries disagree in, in words: `versions torch: 2.12 and 2.13`."""
    if one == other:
        return []
    if isinstance(one, dict) and isinstance(other, dict):
        keys = dict.fromkeys([*one, *other])
        return [text for key in keys for text in differences(one.get(key), other.get(key), f"{name} {key}".strip())]
    return [f"{name}: {one} and {other}"]
