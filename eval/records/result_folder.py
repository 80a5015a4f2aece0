"""Results that are one JSON file in a folder of its own: those of `sa-eval fidelity`, `speed`, `calibrate` and
`coverage`.

A folder says by its file which kind it is; a run has neither file. Imports no torch.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from sa_eval.messages import one_line, shown
from sa_eval.records.directory import RunDirectory
from sa_eval.records.opening import differences
from sa_eval.records.types import Facts, plain, read
from sa_eval.settings.values import SettingsError, nearest

FILES = {
    "fidelity": "fidelity.json",
    "speed": "speed.json",
    "calibrate": "calibration.json",
    "coverage": "coverage.json",
}
RUN = "run"
VERSION = 2  # of these files; the first release wrote 1


@dataclass(kw_only=True)
class Result:
    """What every such file says; each kind adds what it measured.

    Attributes:
        settings: plain values, from which the settings are made again.
        code: hash of the installed sources (None in files of version 1).
        finished: None while it is measured; `interrupted` says that it was stopped.
    """

    started: str
    settings: Facts
    model: Facts
    versions: dict[str, str]
    hardware: Facts
    schema: int = 1
    code: str | None = None
    finished: str | None = None
    interrupted: bool = False
    notes: list[str] = field(default_factory=list)

    @property
    def machine(self) -> str:
        """The GPU, or the CPU with the threads that were used."""
        threads = self.hardware["threads"]
        return self.hardware.get("gpu") or f"{self.hardware['cpu']}, {threads} thread{'s' if threads > 1 else ''}"


Kind = TypeVar("Kind", bound=Result)


def kind_of(path: str) -> str:
    """`fidelity`, `speed`, `calibrate`, `coverage`, or `run` where the folder holds none of their files."""
    return next((kind for kind, name in FILES.items() if (Path(path) / name).is_file()), RUN)


def one_kind(paths: Sequence[str]) -> str:
    """The kind of all these folders.

    Raises:
        SettingsError: they are of several kinds.
    """
    kinds = {kind_of(path): path for path in paths}
    if len(kinds) > 1:
        listed = ", ".join(f"{path} holds a result of `sa-eval {kind}`" for kind, path in kinds.items())
        raise SettingsError(f"folders of one kind belong together, but {listed}")
    return next(iter(kinds))


def read_result(path: str, kind: str, result: type[Kind]) -> Kind:
    """The result in a folder; files of version 1 read as well.

    Raises:
        SettingsError: the file cannot be read, or a newer version wrote it.
    """
    name = FILES[kind]
    try:
        text = (Path(path) / name).read_text(encoding="utf-8")
        found = json.loads(text)
        version = found.get("schema") if isinstance(found, dict) else None
        if version in (1, VERSION):
            return read(result, text)
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path} cannot be read: {name} is damaged ({one_line(error)})") from error
    raise SettingsError(
        f"{path} cannot be read: {name} says schema {shown(version)}, this sa_eval reads 1 to {VERSION}: update it"
    )


def write_result(directory: RunDirectory, kind: str, result: Result) -> None:
    """Replace the file in one step."""
    directory.write_json(FILES[kind], plain(result))


def check_out(out: str | None, parent: str = "runs") -> None:
    """Refuse a folder that is used or cannot be made, before anything is loaded."""
    try:
        if out is not None and (kind := kind_of(out)) != RUN:
            raise SettingsError(
                f"{out} already holds a result of `sa-eval {kind}`: --out must name a new or empty directory; "
                f"`sa-eval resume {out}` continues one that was interrupted"
            )
        RunDirectory.refuse_used(out)
        path = Path(out or parent).absolute()
        above = next(folder for folder in (path, *path.parents) if folder.exists())
        if not above.is_dir() or not os.access(above, os.W_OK):
            raise NotADirectoryError(f"{above} is no directory that can be written")
    except SettingsError:
        raise
    except (OSError, ValueError) as error:
        raise SettingsError(f"out {shown(out or parent)} cannot be made: {one_line(error)}") from error


def create(kind: str, out: str | None, model: str) -> RunDirectory:
    """The folder of a new result: `out`, or runs/<time>-<kind>-<model>. Write the result at once: a kill leaves no
    empty folder then, but one that can be continued."""
    path, count = Path(out or f"runs/{time.strftime('%Y%m%d-%H%M%S')}-{kind}-{model}"), 2
    while out is None and path.exists():  # two started in one second get two folders
        path, count = path.with_name(f"{path.name.removesuffix(f'-{count - 1}')}-{count}"), count + 1
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"out {shown(str(path))} cannot be made: {one_line(error)}") from error
    return RunDirectory(path)


def different(one: Result, other: Result) -> list[str]:
    """What two results disagree in besides their numbers, in words."""
    settings = [{name: value for name, value in result.settings.items() if name != "out"} for result in (one, other)]
    found = differences(settings[0], settings[1], "setting")
    for name in ("model", "versions", "hardware", "code"):
        found += differences(getattr(one, name), getattr(other, name), name)
    return found


def check_arms(asked: tuple[str, str] | None, *known: Sequence[str]) -> None:
    """Refuse names that are no arm of their result; `known` are the arms of the first and of the second."""
    for name, names in zip(asked or (), known, strict=False):
        if name not in names:
            raise SettingsError(f"there is no arm {name!r}: {nearest(name, list(names))}")
