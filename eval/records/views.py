"""What the append-only files of a run say, when several processes and sessions wrote them. Imports no torch.

A session is one start of a run: the first is `run`, every further one a `resume`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import TypeVar

from sa_eval.records.types import ArmRun, Budget, Check, Failure, Place, Prompt, Record, Speed

Measured = TypeVar("Measured", Budget, Speed, Check, Prompt)
Calls = list[dict[str, int]]
# What makes two rows the same one; the one written last counts.
SAME = {Budget: ("arm", "length"), Speed: ("arm", "length"), Check: ("check", "arm"), Prompt: ("task", "index")}


def winning(records: Iterable[Record]) -> list[Record]:
    """One record per place: a score before a failure, then the one written last."""
    found: dict[Place, Record] = {}
    for record in records:
        if record.error is None or found.get(record.place, record).error is not None:
            found[record.place] = record
    return list(found.values())


def last(rows: Iterable[Measured]) -> list[Measured]:
    """One row per thing that was measured or asked."""
    return list({tuple(getattr(row, name) for name in SAME[type(row)]): row for row in rows}.values())


def arm_runs(rows: Iterable[ArmRun]) -> list[ArmRun]:
    """One row per arm and seed: seconds and calls summed over the chunks, processes and sessions that took part."""
    found: dict[tuple[str, int], ArmRun] = {}
    for row in rows:
        before = found.get((row.arm, row.seed))
        found[row.arm, row.seed] = row if before is None else _joined(before, row)
    return [_with_calls(row) for row in found.values()]


def _joined(one: ArmRun, other: ArmRun) -> ArmRun:
    return replace(
        other,
        seconds=round(one.seconds + other.seconds, 3),
        calls=other.calls if one.calls is None or other.calls is None else _summed(one.calls, other.calls),
        describe=other.describe or one.describe,
        notes=list(dict.fromkeys([*one.notes, *other.notes])),
    )


def _summed(one: Calls, other: Calls) -> Calls:
    return [
        {name: first.get(name, 0) + second.get(name, 0) for name in {**first, **second}}
        for first, second in zip(one, other, strict=True)
    ]


def _with_calls(row: ArmRun) -> ArmRun:
    """The calls of all layers together as the last line of the description."""
    if not row.calls:
        return row
    total: Counter[str] = Counter()
    for layer in row.calls:
        total.update(layer)
    calls = ", ".join(f"{name} {count}" for name, count in total.items())
    return replace(row, describe=f"{row.describe}\n{'calls':<10} {calls} (over all layers)")


def standing_failures(rows: Iterable[Failure], session: int | None, failed: set[Place]) -> list[Failure]:
    """The failures that no later answer or session mended, alike ones as one row.

    Args:
        session: the last session; every session tries again what is not about single documents.
        failed: places whose record is an error.
    """
    found: dict[tuple[str | None, int | None, str | None, str], Failure] = {}
    for row in rows:
        alike = row.arm, row.seed, row.task, row.error
        if row.documents is not None:
            left = {index for index in row.documents if (row.arm, row.seed, row.task, index) in failed}
            if not left:
                continue
            before = found.get(alike)
            row = replace(row, documents=sorted(left.union((before and before.documents) or ())))
        elif None not in (session, row.session) and row.session != session:
            continue
        found[alike] = row
    return list(found.values())
