"""The settings files and model shapes that are shipped: which there are, and where a name or a path leads."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from sa_eval import configs  # pyright: ignore[reportAttributeAccessIssue]
from sa_eval.settings.values import SettingsError

FOLDER = Path(configs.__file__).parent


def names() -> list[str]:
    """What --config takes besides the path of a file."""
    return sorted(file.stem for file in FOLDER.glob("*.yaml"))


def shapes() -> list[str]:
    """What --shape takes besides the path of a file."""
    return sorted(file.stem for file in (FOLDER / "shapes").glob("*.json"))


def settings_path(given: str | Path) -> Path:
    """The file that `--config` means: a bare word that is no file here is the name of shipped settings.

    Raises:
        SettingsError: when there are none of that name.
    """
    return _path(given, "config", "settings", {name: FOLDER / f"{name}.yaml" for name in names()})


def shape_path(given: str) -> Path:
    """The file that `--shape` means: a bare word that is no file here is the name of a shipped shape.

    Raises:
        SettingsError: when there is none of that name.
    """
    return _path(given, "shape", "shapes", {name: FOLDER / "shapes" / f"{name}.json" for name in shapes()})


def _path(given: str | Path, what: str, kind: str, shipped: Mapping[str, Path]) -> Path:
    word = str(given)
    if re.fullmatch(r"[\w-]+", word) is None or Path(word).is_file():
        return Path(given)
    if word not in shipped:
        raise SettingsError(
            f"{what} {word[:100]!r} is neither a file nor the name of shipped {kind}: {', '.join(shipped)}"
        )
    return shipped[word]
