"""The sentences that stand first: at which lengths each arm starts sooner or later than full, the slowest arm first.

Nothing is said beyond the data: an arm is faster or slower where the ranges of its repeats and full's lie apart, and
lengths that were not measured are not spoken of.
"""

from __future__ import annotations

from sa_eval.records.types import FULL
from sa_eval.speed.beside_full import FLOOR, LEAST_REPEATS, told_apart
from sa_eval.speed.types import Row, SpeedResult

WORDS = {"faster": "faster than full", "slower": "slower than full", "open": "not told apart from full by its repeats"}


def sentences(result: SpeedResult) -> list[str]:
    """One per arm, the slowest at the longest length first."""
    full = {row.length: row for row in result.rows if row.arm == FULL}
    found: list[tuple[float, str]] = []
    for arm in result.arms:
        rows = [row for row in result.rows if row.arm == arm.name and row.length in full]
        if arm.name in (FULL, FLOOR) or not rows:
            continue
        rows.sort(key=lambda row: -(row.tokens))
        longest = rows[0]
        found.append((longest.times_as_fast or 0.0, _sentence(rows, full)))
    if not found:
        return ["No arm was measured beside full attention."]
    few = min(len(row.repeats_ms) for row in result.rows)
    warning = (
        [f"{few} repeat{'s' if few > 1 else ''}: too few to tell an arm from full."] if few < LEAST_REPEATS else []
    )
    return [*warning, *(text for _, text in sorted(found))]


def _sentence(rows: list[Row], full: dict[int | None, Row]) -> str:
    """Of one arm, the longest length first."""
    longest, shorter = rows[0], rows[1:]
    verdict = _verdict(longest, full[longest.length])
    start = f"At {longest.tokens:,} tokens {longest.arm} starts {_range([longest])} as fast as full"
    if verdict == "slower":
        start = f"At {longest.tokens:,} tokens {longest.arm} is slower to start than full ({_range([longest])} as fast)"
    elif verdict == "open" and len(longest.repeats_ms) >= LEAST_REPEATS:
        start += ", but the repeats of both overlap"
    parts = []
    for word in ("slower", "open", "faster"):
        at = [row for row in shorter if _verdict(row, full[row.length]) == word]
        if at and word != verdict:
            parts.append(f"at {_lengths(at)} it is {WORDS[word]} ({_range(at)})")
        elif at:
            parts.append(f"so it is at {_lengths(at)} ({_range(at)})")
    return "; ".join([start, *parts]) + "."


def _verdict(row: Row, full: Row) -> str:
    if not told_apart(row.repeats_ms, full.repeats_ms):
        return "open"
    return "faster" if row.prefill_ms < full.prefill_ms else "slower"


def _lengths(rows: list[Row]) -> str:
    found = [f"{row.tokens:,}" for row in reversed(rows)]
    return found[0] if len(found) == 1 else f"{', '.join(found[:-1])} and {found[-1]}"


def _range(rows: list[Row]) -> str:
    values = [row.times_as_fast or 0.0 for row in rows]
    low, high = f"{min(values):.2f}", f"{max(values):.2f}"
    return f"{low} times" if low == high else f"{low} to {high} times"
