"""Owns the run directory: what is written where, appended and flushed to disk. Imports no torch, no lm-eval.

config.yaml              effective settings
manifest.json            model, versions, hardware, arms, tasks and document hashes
records/<arm>.seed<k>.jsonl   one line per document; one file per arm and seed, so arms can run in any process
budgets.jsonl speed.jsonl arm_runs.jsonl failures.jsonl
results.json summary.csv report.html   computed from the files above
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from sa_eval.config import SettingsError

LOGS = ("budgets", "speed", "arm_runs", "failures")


class RunDirectory:
    """Append-only records of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path

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
        if path is not None and path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise SettingsError(
                f"{path} already holds something: --out must name a new or empty directory, so that two runs never mix"
            )

    def write_text(self, name: str, text: str) -> None:
        """Replace a whole file in one step: a reader never sees half of it."""
        target = self.path / name
        partial = target.with_name(target.name + ".partial")
        with partial.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(target)

    def write_json(self, name: str, content: Any) -> None:
        self.write_text(name, json.dumps(content, indent=1, ensure_ascii=False, default=str) + "\n")

    def append_records(self, arm: str, seed: int, rows: Iterable[dict[str, Any]]) -> None:
        self._append(self.path / "records" / f"{arm}.seed{seed}.jsonl", rows)

    def append(self, log: str, row: dict[str, Any]) -> None:
        if log not in LOGS:
            raise ValueError(f"no log named {log!r}: {LOGS}")
        self._append(self.path / f"{log}.jsonl", [row])

    def records(self) -> Iterator[dict[str, Any]]:
        for file in sorted((self.path / "records").glob("*.jsonl")):
            yield from _lines(file)

    def log(self, name: str) -> list[dict[str, Any]]:
        return list(_lines(self.path / f"{name}.jsonl"))

    def read_json(self, name: str) -> Any:
        return json.loads((self.path / name).read_text(encoding="utf-8"))

    @staticmethod
    def _append(path: Path, rows: Iterable[dict[str, Any]]) -> None:
        with path.open("a", encoding="utf-8") as stream:
            stream.writelines(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
            stream.flush()
            os.fsync(stream.fileno())


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    if not path.exists():
        return
    with path.open(encoding="utf-8") as stream:
        for line in stream:
            if line.endswith("\n"):  # a torn last line was never finished
                yield json.loads(line)


def _fresh(parent: Path, name: str) -> Path:
    """Two runs started in one second get two directories."""
    path, count = parent / name, 2
    while path.exists():
        path, count = parent / f"{name}-{count}", count + 1
    return path
