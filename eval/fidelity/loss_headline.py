"""The sentences that stand first: how far each arm is from full, the largest loss first, and which arm is closest.

Nothing is said beyond the data: an arm is the closest one only where the paired difference to every other arm excludes
0, passages drawn anew, at 95 % for all these differences together (Bonferroni).
"""

from __future__ import annotations

from itertools import groupby

import numpy as np

from sa_eval.fidelity import sums
from sa_eval.fidelity.types import Cell, Fidelity
from sa_eval.records.types import FULL, ArmRow
from sa_eval.results import stats

LEAST_PASSAGES = 6  # with fewer, no test of signs reaches 5 %: nothing is said
NAMED = 4  # arms of a sentence with their numbers


def sentences(results: Fidelity) -> list[str]:
    """One per length and budget, long texts and small budgets first."""
    arms = {arm.name: arm for arm in results.arms}
    found = []
    for length in sorted(results.lengths, reverse=True):
        cells = [cell for cell in results.at(length) if cell.arm != FULL]
        cells.sort(key=lambda cell: _budget(arms[cell.arm]))
        for _, group in groupby(cells, key=lambda cell: _budget(arms[cell.arm])):
            found.append(_sentence(sorted(group, key=lambda cell: -cell.overall.kl), arms))
    return found or ["No arm was measured."]


def _budget(arm: ArmRow) -> tuple[float, int]:
    return float(arm.window or 0), arm.dense_tail


def _sentence(cells: list[Cell], arms: dict[str, ArmRow]) -> str:
    """Of arms with one budget at one length, the largest loss first."""
    few = cells[0].passages < LEAST_PASSAGES
    shown = cells if len(cells) <= NAMED else [*cells[: NAMED - 1], cells[-1]]
    parts = []
    for index, cell in enumerate(shown):
        hidden = f"{len(cells) - NAMED} more arms, " if index == NAMED - 1 and len(cells) > NAMED else ""
        verb = " is" if index == 0 else ""
        unit = " nats from full" if index == 0 else ""
        parts.append(f"{hidden}{_name(cell, cells, arms)}{verb} {number(cell.overall.kl)}{unit}{_span(cell, few)}")
    start = "At" if not few else f"{_passages(cells[0].passages)}: too few to say which arm is closest. At"
    end = "" if few or len(cells) == 1 else f"; {_closest(cells, arms)}"
    return f"{start} {_where(cells, arms[cells[0].arm])} {', '.join(parts)}{end}."


def _where(cells: list[Cell], arm: ArmRow) -> str:
    keys = sorted(
        {f"{cell.budget.keys_per_query:,.0f}" for cell in cells}, key=lambda text: float(text.replace(",", ""))
    )
    count = keys[0] if len(keys) == 1 else f"{keys[0]} to {keys[-1]}"
    tail = f", last {arm.dense_tail} queries dense" if arm.dense_tail else ""
    return f"{count} keys per query (window {arm.window}, {cells[0].length:,} tokens{tail})"


def _closest(cells: list[Cell], arms: dict[str, ArmRow]) -> str:
    """The arm that is closer than all others, or those that cannot be told apart from the closest."""
    *others, best = cells
    level = 1 - (1 - stats.LEVEL) / len(others)
    near = [cell for cell in others if difference(cell, best, level)[0] <= 0]
    if not near:
        return f"the closest is {_name(best, cells, arms)}"
    names = [_name(cell, cells, arms) for cell in [*near, best]]
    return f"these texts cannot tell {', '.join(names[:-1])} and {names[-1]} apart"


def difference(one: Cell, other: Cell, level: float = stats.LEVEL) -> sums.Interval:
    """Interval of KL, `one` minus `other`, on the same passages."""
    rows = list(zip(one.by_passage, other.by_passage, strict=True))
    counts = np.array([row.predictions for row, _ in rows], dtype=float)
    losses = np.array([[(row.kl or 0.0) * row.predictions for row in pair] for pair in rows])
    return sums.interval(losses[:, 0] - losses[:, 1], counts, level)


def _name(cell: Cell, cells: list[Cell], arms: dict[str, ArmRow]) -> str:
    """Without the window, which the sentence says already."""
    label = arms[cell.arm].label
    return label if sum(arms[other.arm].label == label for other in cells) == 1 else cell.arm


def _span(cell: Cell, few: bool) -> str:
    edges = cell.intervals.kl
    return "" if few or edges is None else f" ({number(edges[0])} to {number(edges[1])})"


def _passages(count: int) -> str:
    return f"{count} passage{'s' if count > 1 else ''}"


def number(value: float) -> str:
    """Three significant digits; 0 only where it is 0."""
    return "0" if value == 0 else f"{value:.3g}" if abs(value) < 1000 or abs(value) >= 1e7 else f"{value:,.0f}"
