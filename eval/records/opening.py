"""Opening a run that was made before, to read it, and what two runs differ in. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from sa_eval.records.directory import MANIFEST, RunDirectory
from sa_eval.records.jsonl import StorageError
from sa_eval.records.types import Json, Manifest

THEN_AND_NOW = "{} then, {} now"


def open_run(path: str) -> tuple[RunDirectory, Manifest]:
    """A run directory and its manifest; the run may be unfinished, or still going on.

    Raises:
        StorageError: there is no run, or its manifest cannot be read.
    """
    directory = RunDirectory(Path(path))
    if not directory.has(MANIFEST):
        raise StorageError(f"{path} holds no run: it has no {MANIFEST}; give a directory that `sa-eval run` made")
    return directory, directory.manifest()


def differences(one: Json, other: Json, name: str = "", words: str = "{} and {}") -> list[str]:
    """Where two JSON values disagree, each in words: `versions torch: 2.12 and 2.13`.

    Args:
        name: what the values are called.
        words: how the two are put side by side.
    """
    if one == other:
        return []
    if isinstance(one, dict) and isinstance(other, dict):
        keys = dict.fromkeys([*one, *other])
        below = ((one.get(key), other.get(key), f"{name} {key}".strip(), words) for key in keys)
        return [text for values in below for text in differences(*values)]
    return [f"{name}: {words.format(one, other)}"]
