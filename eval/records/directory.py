"""The run directory: which file holds what. Imports no torch, no lm-eval.

config.yaml                     effective settings
manifest.json                   Manifest: model, versions, hardware, arms, tasks and document hashes, sessions
records/<arm>.seed<k>.jsonl     one Record per document
documents.jsonl                 one Prompt per document, whatever the arm
budgets.jsonl speed.jsonl checks.jsonl arm_runs.jsonl failures.jsonl      Budget, Speed, Check, ArmRun, Failure
run.lock ranks/                 who works here now
results.json summary.csv report.html   computed from the files above

Under several processes each writes its own files: `<name>.rank<r>.jsonl` from the second on.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import is_dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

from sa_eval.messages import one_line, shown
from sa_eval.records import jsonl, types, views
from sa_eval.records.types import ArmRun, Budget, Check, Failure, Manifest, Prompt, Record, Speed
from sa_eval.settings.values import SettingsError

Row = TypeVar("Row", Budget, Speed, Check, Prompt, ArmRun, Failure)
LOGS = {
    Budget: "budgets",
    Speed: "speed",
    Check: "checks",
    Prompt: "documents",
    ArmRun: "arm_runs",
    Failure: "failures",
}
MANIFEST = "manifest.json"
LOCK = "run.lock"


class RunDirectory:
    """Append-only records of one run."""

    def __init__(self, path: Path, rank: int = 0) -> None:
        self.path = path
        self._suffix = f".rank{rank}.jsonl" if rank else ".jsonl"

    @classmethod
    def create(cls, out: str | None, model_name: str) -> RunDirectory:
        """A new run directory; one that already holds a run is refused, never overwritten.

        Raises:
            SettingsError: the directory holds something, or cannot be made.
        """
        cls.refuse_used(out)
        path = Path(out) if out else _fresh(Path("runs"), f"{time.strftime('%Y%m%d-%H%M%S')}-{model_name}")
        try:
            (path / "records").mkdir(parents=True, exist_ok=True)
        except (OSError, ValueError) as error:
            raise SettingsError(f"out {shown(out or 'runs')} cannot be made: {one_line(error)}") from error
        return cls(path)

    @staticmethod
    def refuse_used(out: str | None) -> None:
        """Raise when --out names something that is not a new or empty directory."""
        path = Path(out) if out else None
        if path is None or not path.exists() or (path.is_dir() and not any(path.iterdir())):
            return
        if path.is_dir() and (path / "config.yaml").exists() and not _finished(path):
            raise SettingsError(
                f"{path} already holds an unfinished run: `sa-eval resume {path}` continues it; --out must name a new "
                "or empty directory"
            )
        raise SettingsError(
            f"{path} already holds something: --out must name a new or empty directory, so that two runs never mix"
        )

    @property
    def lock(self) -> Path:
        return self.path / LOCK

    def write_text(self, name: str, text: str) -> None:
        """Replace a whole file in one step: a reader never sees half of it."""
        target = self.path / name
        partial = target.with_name(target.name + ".partial")
        with jsonl.writing(target):
            try:
                with partial.open("w", encoding="utf-8", errors="backslashreplace") as stream:
                    stream.write(text)
                    stream.flush()
                    os.fsync(stream.fileno())
                partial.replace(target)
            except OSError:
                with contextlib.suppress(OSError):
                    partial.unlink()
                raise
            jsonl.sync_folder(target.parent)

    def write_json(self, name: str, content: Any) -> None:
        self.write_text(name, json.dumps(content, indent=1, ensure_ascii=False, default=_json) + "\n")

    def append_records(self, rows: Iterable[Record]) -> None:
        """All rows of one arm and seed in one write, on the disk when this returns."""
        for (arm, seed), members in groupby(rows, key=lambda row: (row.arm, row.seed)):
            jsonl.append(self.path / "records" / f"{arm}.seed{seed}{self._suffix}", members)

    def append(self, *rows: Row) -> None:
        """Rows of one kind, in one write."""
        if rows:
            jsonl.append(self.path / f"{LOGS[type(rows[0])]}{self._suffix}", rows)

    def records(self) -> Iterator[Record]:
        """One record per arm, seed, task and document: a score before a failure, then the one written last.

        Raises:
            StorageError: a damaged line, with its file and number.
        """
        files = sorted((self.path / "records").glob("*.jsonl"), key=lambda file: (_group(file), file.name))
        for _, members in groupby(files, key=_group):
            yield from views.winning(row for file in members for row in jsonl.read(file, Record))

    def budgets(self) -> list[Budget]:
        return views.last(self.written(Budget))

    def speed(self) -> list[Speed]:
        return views.last(self.written(Speed))

    def checks(self) -> list[Check]:
        return views.last(self.written(Check))

    def prompts(self) -> list[Prompt]:
        return views.last(self.written(Prompt))

    def arm_runs(self) -> list[ArmRun]:
        """One row per arm and seed, summed over all that took part."""
        return views.arm_runs(self.written(ArmRun))

    def failures(self) -> list[Failure]:
        """Those that were not mended since."""
        rows = self.written(Failure)
        about_documents = any(row.documents is not None for row in rows)
        failed = {row.place for row in self.records() if row.error is not None} if about_documents else set()
        sessions = self.manifest().sessions if self.has(MANIFEST) else []
        return views.standing_failures(rows, len(sessions) or None, failed)

    def written(self, kind: type[Row]) -> list[Row]:
        """Every row of a log, from all processes and sessions."""
        name = LOGS[kind]
        files = [self.path / f"{name}.jsonl", *sorted(self.path.glob(f"{name}.rank*.jsonl"))]
        return [row for file in files for row in jsonl.read(file, kind)]

    def manifest(self) -> Manifest:
        """What the run says about itself.

        Raises:
            StorageError: manifest.json is missing, damaged, or of a later version of this program.
        """
        try:
            text = (self.path / MANIFEST).read_bytes()
            version = types.read(types.Version, text).schema
            if version <= types.VERSION:
                return types.read(Manifest, text)
        except (OSError, ValueError) as error:
            raise jsonl.StorageError(
                f"{self.path} cannot be read: {MANIFEST} is damaged ({one_line(error)})"
            ) from error
        raise jsonl.StorageError(
            f"{self.path} was written by a later sa_eval: its files are of version {version}, this one reads up to "
            f"version {types.VERSION}; upgrade: pip install --upgrade 'sa-patch[eval]'"
        )

    def write_manifest(self, manifest: Manifest) -> None:
        self.write_json(MANIFEST, manifest)

    def has(self, name: str) -> bool:
        return (self.path / name).exists()


def _group(file: Path) -> str:
    """The files of one arm and seed belong together, whichever process wrote them."""
    return re.sub(r"(\.rank\d+)?\.jsonl$", "", file.name)


def _finished(path: Path) -> bool:
    try:
        return bool(RunDirectory(path).manifest().finished)
    except jsonl.StorageError:
        return False


def _json(value: Any) -> Any:
    return types.plain(value) if is_dataclass(value) else str(value)


def _fresh(parent: Path, name: str) -> Path:
    """Two runs started in one second get two directories."""
    path, count = parent / name, 2
    while path.exists():
        path, count = parent / f"{name}-{count}", count + 1
    return path
