"""Owns how the append-only logs of a run are read when several processes and sessions wrote them. Imports no torch.

A session is one start of a run: the first is `run`, every further one a `resume`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

Row = dict[str, Any]
# log -> what makes two rows the same one; the one written last counts.
SAME = {
    "budgets": ("arm", "length"),
    "speed": ("arm", "length"),
    "checks": ("check", "arm"),
    "documents": ("task", "index"),
}
Place = tuple[Any, Any, Any, Any]


def place_of(record: Row) -> Place:
    """Which document under which arm a record is about."""
    return record["arm"], record["seed"], record["task"], record["index"]


def winning(records: Iterable[Row]) -> list[Row]:
    """One record per place: a score before a failure, then the one written last."""
    found: dict[Place, Row] = {}
    for record in records:
        place = place_of(record)
        if "error" not in record or "error" in found.get(place, record):
            found[place] = record
    return list(found.values())


def last(name: str, rows: Iterable[Row]) -> list[Row]:
    """One row per thing a log is about."""
    return list({tuple(row.get(key) for key in SAME[name]): row for row in rows}.values())


def arm_runs(rows: Iterable[Row]) -> list[Row]:
    """One row per arm and seed: seconds and calls summed over the chunks, processes and sessions that took part."""
    found: dict[Any, Row] = {}
    for row in rows:
        before = found.get((row["arm"], row["seed"]))
        found[row["arm"], row["seed"]] = row if before is None else _joined(before, row)
    return [_told(row) for row in found.values()]


def _joined(one: Row, other: Row) -> Row:
    calls = other["calls"]
    if one["calls"] is not None and calls is not None:
        calls = [
            {key: first.get(key, 0) + second.get(key, 0) for key in {**first, **second}}
            for first, second in zip(one["calls"], calls, strict=True)
        ]
    return {
        **other,
        "seconds": round(one["seconds"] + other["seconds"], 3),
        "calls": calls,
        "describe": other["describe"] or one["describe"],
        "notes": list(dict.fromkeys([*one.get("notes", []), *other.get("notes", [])])),
    }


def _told(row: Row) -> Row:
    """What the arm did, in words, at the end of what it is."""
    if not row["calls"]:
        return row
    total: Counter[str] = Counter()
    for layer in row["calls"]:
        total.update(layer)
    calls = ", ".join(f"{name} {count}" for name, count in total.items())
    return {**row, "describe": f"{row['describe']}\n{'calls':<10} {calls} (over all layers)"}


def standing_failures(rows: Iterable[Row], session: int | None, failed: set[Place]) -> list[Row]:
    """The failures that nobody mended since, alike ones as one row.

    Args:
        session: the last session; every session tries again what is not about single documents.
        failed: places whose record is an error.
    """
    found: dict[Any, Row] = {}
    for row in rows:
        indices = row.get("documents")
        if indices is not None:
            left = [idx for idx in indices if (row["arm"], row["seed"], row["task"], idx) in failed]
            if not left:
                continue
            row = {**row, "documents": left}
        elif None not in (session, row.get("session")) and row["session"] != session:
            continue
        alike = tuple(row.get(key) for key in ("arm", "seed", "task", "error"))
        before = found.get(alike)
        if before is not None and indices is not None:
            row = {**row, "documents": sorted({*before.get("documents", []), *row["documents"]})}
        found[alike] = row
    return list(found.values())
