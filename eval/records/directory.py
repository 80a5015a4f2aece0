"""Owns the run directory: what is written where, appended and flushed to disk. Imports no torch, no lm-eval.

config.yaml                     effective settings
manifest.json                   model, versions, hardware, arms, tasks and document hashes, sessions
records/<arm>.seed<k>.jsonl     one line per document
documents.jsonl                 one line per document, whatever the arm: what was asked
budgets.jsonl speed.jsonl checks.jsonl arm_runs.jsonl failures.jsonl
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
from itertools import groupby
from pathlib import Path
from typing import Any

from sa_eval.records import jsonl, views
from sa_eval.settings.values import SettingsError

LOGS = (*views.SAME, "arm_runs", "failures")
RECORD_TYPES = {"arm": str, "seed": int, "task": str, "index": int, "hash": str, "score": (int, float)}
LOCK = "run.lock"


class RunDirectory:
    """Append-only records of one run."""

    def __init__(self, path: Path, rank: int = 0) -> None:
        self.path = path
        self._suffix = f".rank{rank}.jsonl" if rank else ".jsonl"

    @classmethod
    def create(cls, out: str | None, model_name: str) -> RunDirectory:
        """A new run directory; one that already holds a run is refused, never overwritten."""
        cls.refuse_used(out)
        path = Path(out) if out else _fresh(Path("runs"), f"{time.strftime('%Y%m%d-%H%M%S')}-{model_name}")
        (path / "records").mkdir(parents=True, exist_ok=True)
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
        with jsonl.told(target):
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
        self.write_text(name, json.dumps(content, indent=1, ensure_ascii=False, default=str) + "\n")

    def append_records(self, arm: str, seed: int, rows: Iterable[dict[str, Any]]) -> None:
        """All rows in one write, on the disk when this returns."""
        jsonl.append(self.path / "records" / f"{arm}.seed{seed}{self._suffix}", rows)

    def append(self, log: str, *rows: dict[str, Any]) -> None:
        if log not in LOGS:
            raise ValueError(f"no log named {log!r}: {LOGS}")
        jsonl.append(self.path / f"{log}{self._suffix}", rows)

    def records(self) -> Iterator[dict[str, Any]]:
        """One record per arm, seed, task and document: a score before a failure, then the one written last.

        Raises:
            StorageError: a damaged line, with its file and number.
        """
        files = sorted((self.path / "records").glob("*.jsonl"), key=lambda file: (_group(file), file.name))
        for _, members in groupby(files, key=_group):
            yield from views.winning(row for file in members for row in jsonl.read(file, RECORD_TYPES))

    def log(self, name: str) -> list[dict[str, Any]]:
        """What a log says now: rows that a later one replaced, and failures that were mended, are left out."""
        rows = self.raw_log(name)
        if name == "arm_runs":
            return views.arm_runs(rows)
        if name != "failures":
            return views.last(name, rows)
        about_documents = any(row.get("documents") is not None for row in rows)
        failed = {views.place_of(row) for row in self.records() if "error" in row} if about_documents else set()
        return views.standing_failures(rows, self._last_session(), failed)

    def raw_log(self, name: str) -> list[dict[str, Any]]:
        """Every row of a log, from all processes."""
        files = [self.path / f"{name}.jsonl", *sorted(self.path.glob(f"{name}.rank*.jsonl"))]
        return [row for file in files for row in jsonl.read(file)]

    def has(self, name: str) -> bool:
        return (self.path / name).exists()

    def read_json(self, name: str) -> Any:
        return json.loads((self.path / name).read_text(encoding="utf-8"))

    def _last_session(self) -> int | None:
        sessions = self.read_json("manifest.json").get("sessions") if self.has("manifest.json") else None
        return len(sessions) if sessions else None


def _group(file: Path) -> str:
    """The files of one arm and seed belong together, whichever process wrote them."""
    return re.sub(r"(\.rank\d+)?\.jsonl$", "", file.name)


def _finished(path: Path) -> bool:
    try:
        return bool(json.loads((path / "manifest.json").read_text(encoding="utf-8")).get("finished"))
    except (OSError, ValueError):
        return False


def _fresh(parent: Path, name: str) -> Path:
    """Two runs started in one second get two directories."""
    path, count = parent / name, 2
    while path.exists():
        path, count = parent / f"{name}-{count}", count + 1
    return path
