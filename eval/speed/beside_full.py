"""Rows beside full's and the floor's of their length: times as fast, and what can be told apart. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields

from sa_eval.records.result_folder import read_result
from sa_eval.records.types import FULL, Speed
from sa_eval.speed.types import KernelTime, Row, SpeedResult

FLOOR = "none"
LEAST_REPEATS = 4  # ranges of 4 and 4 repeats lie apart by chance once in 35 times, of 3 and 3 once in 10


def beside_full(rows: Sequence[Speed], by_kernel: Mapping[str, list[KernelTime]] | None = None) -> list[Row]:
    """The rows with how they stand to full and to the floor of their length.

    Args:
        by_kernel: what the kernels of each arm took, for rows of one length; None: what rows that are read hold.
    """
    at = {(row.arm, row.length): row for row in rows}
    found = []
    for row in rows:
        full, floor = (at.get((name, row.length)) for name in (FULL, FLOOR))
        over = quotient(row.prefill_ms, floor.prefill_ms if floor else None)
        measured = {item.name: getattr(row, item.name) for item in fields(Speed)}
        found.append(
            Row(
                **measured,
                times_as_fast=quotient(full.prefill_ms if full else None, row.prefill_ms),
                decode_times_as_fast=quotient(row.decode_tokens_per_s, full.decode_tokens_per_s if full else None),
                over_floor=None if over is None else over - 1,
                by_kernel=getattr(row, "by_kernel", []) if by_kernel is None else by_kernel.get(row.arm, []),
            )
        )
    return found


def read(path: str) -> SpeedResult:
    """The result in a folder; how rows stand to full is computed anew, files of version 1 said it the other way."""
    result = read_result(path, "speed", SpeedResult)
    result.rows = beside_full(result.rows)
    return result


def apart(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether the ranges of the repeats lie apart."""
    return bool(one and other) and (max(one) < min(other) or max(other) < min(one))


def told_apart(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether they lie apart, and there are enough repeats for that to mean something."""
    return min(len(one), len(other)) >= LEAST_REPEATS and apart(one, other)


def quotient(value: float | None, by: float | None) -> float | None:
    return None if value is None or not by else value / by
