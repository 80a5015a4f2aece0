"""Owns the settings files that are shipped: which there are, and where a name or a path leads. Imports no torch."""

from __future__ import annotations

import re
from pathlib import Path

from sa_eval import configs
from sa_eval.settings.values import SettingsError

FOLDER = Path(configs.__file__).parent


def names() -> list[str]:
    """What --config takes besides the path of a file."""
    return sorted(file.stem for file in FOLDER.glob("*.yaml"))


def place(given: str | Path) -> Path:
    """The file that `--config` means: a bare word that is no file here is the name of shipped settings.

    Raises:
        SettingsError: when there are none of that name.
    """
    word = str(given)
    if re.fullmatch(r"[\w-]+", word) is None or Path(word).is_file():
        return Path(given)
    if word not in names():
        raise SettingsError(
            f"config {word[:100]!r} is neither a file nor the name of shipped settings: {', '.join(names())}"
        )
    return FOLDER / f"{word}.yaml"
