"""Results as plain text for a terminal: what did not pass first, then a table per length."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from sa_eval.records.types import Failure
from sa_eval.results.answer import points, span
from sa_eval.results.significance import fewest_documents
from sa_eval.results.summary import by_arm_and_length
from sa_eval.results.text_tables import aligned, columns
from sa_eval.results.types import Cell, Difference, Family, Gate, Length, Results

SENTENCES = 4  # the report has all of them
PLACES = 4  # of a gate; the report has all of them
MARK = "\u2020"
LEGEND = (
    "Accuracy in %, 95\u00a0% interval in brackets. vs full: points, paired by document, interval at the level of "
    f"Holm's correction; {MARK} significant. ms: prefill of one prompt; x full: times as fast as full, above 1 "
    "is faster."
)


def render(results: Results) -> str:
    """The whole answer for a terminal: sentence, gates that did not pass, one table per length, notes."""
    width = columns()
    blocks = ["\n".join(textwrap.wrap(sentence, width)) for sentence in results.answer[:SENTENCES]]
    blocks += ["\n".join(_bullet(mark, text) for mark, text in _gates(results.gates))]
    blocks += [_block(results, length) for length in dict.fromkeys(task.length for task in results.tasks)]
    blocks += ["\n".join(_bullet("*", line) for line in (*results.notes, LEGEND))]
    if results.failures:
        blocks.append("\n".join(["Failures:", *_failures(results.failures, width)]))
    return "\n\n".join(block for block in blocks if block)


def _gates(gates: Sequence[Gate]) -> list[tuple[str, str]]:
    """Those that did not pass, and how many did."""
    found = []
    for gate in gates:
        if gate.status != "passed":
            hidden = len(gate.where) - PLACES
            where = ", ".join(gate.where[:PLACES]) + (f" and {hidden} more" if hidden > 0 else "")
            text = f"{gate.gate}: {gate.text}{f' {where}.' if where else ''}"
            found.append(("!!" if gate.status == "failed" else "!", text))
    return [*found, ("*", f"{len(gates) - len(found)} of {len(gates)} gates passed.")]


def _failures(failures: Sequence[Failure], width: int, most: int = 10) -> list[str]:
    lines = [
        f"  ! {' · '.join(filter(None, (failure.arm, failure.task))) or 'run'}: {failure.error.splitlines()[0][:width]}"
        for failure in failures[:most]
    ]
    hidden = len(failures) - most
    return [*lines, *([f"  ! and {hidden} more (failures.jsonl)"] if hidden > 0 else [])]


def _bullet(mark: str, text: str) -> str:
    return textwrap.fill(text, columns(), initial_indent=f"{mark:>3} ", subsequent_indent="    ")


def _block(results: Results, length: Length) -> str:
    """The table of one length."""
    cells = {(cell.arm, cell.scope, cell.name): cell for cell in results.cells if cell.length == length}
    families = [name for scope, name in dict.fromkeys((scope, name) for _, scope, name in cells) if scope == "family"]
    budgets, speeds = by_arm_and_length(results.budgets), by_arm_and_length(results.speed)
    shown = [arm.name for arm in results.arms if (arm.name, "overall", "overall") in cells]
    numbers = ("overall", "vs full", "keys/q", "density", "ms", "x full")
    rows = [["", *map(_heading, families), *numbers]]
    for name in shown:
        overall, budget, speed = (
            cells[name, "overall", "overall"],
            budgets.get((name, length)),
            speeds.get((name, length)),
        )
        rows.append(
            [
                name,
                *[points(cells[name, "family", family].accuracy, sign=False) for family in families],
                f"{points(overall.accuracy, sign=False)} [{100 * overall.low:.0f}, {100 * overall.high:.0f}]",
                difference(overall.versus_full),
                _number(budget and budget.keys_per_query, ".0f"),
                _number(budget and budget.density, ".2f"),
                _number(speed and speed.prefill_ms, ".1f"),
                _number(speed and speed.speedup, ".2f"),
            ]
        )
    overalls = [cells[name, "overall", "overall"] for name in shown]
    counts = sorted({cell.documents for cell in overalls}) or [0]
    documents = str(counts[-1]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    title = "Tasks with their own lengths" if length is None else f"Length {length} tokens"
    lines = [
        f"{title} ({documents} documents per arm)",
        aligned(rows),
        *textwrap.wrap(_detectable(overalls, results.to_full), columns()),
    ]
    return "\n".join(lines)


def _detectable(cells: Sequence[Cell], family: Family) -> str:
    """What this many documents could have shown."""
    tested = [cell.versus_full for cell in cells if cell.versus_full is not None]
    found = [row.detectable for row in tested if row.detectable is not None]
    if not tested:
        return ""
    if not found:
        fewest = fewest_documents(family.level)
        return (
            f"Too few documents to detect any difference to full: with {family.tests:,} tests, {fewest} are the least."
        )
    low, high = (points(value, sign=False) for value in (min(found), max(found)))
    size = f"{low} points" if low == high else f"{low} to {high} points, depending on the arm"
    return f"Detectable overall with power 0.8: a true difference to full of {size}."


def difference(found: Difference | None) -> str:
    """In points, marked where it is significant, with its corrected interval; no interval where nothing can be said."""
    if found is None:
        return ""
    interval = span(found.corrected_low, found.corrected_high, between=", ")
    return f"{points(found.value)}{MARK if found.significant else ' '} {f'[{interval}]' if found.enough else 'too few'}"


def _heading(family: str) -> str:
    return {"retrieval": "retriev", "aggregation": "aggreg"}.get(family, family)


def _number(value: float | None, form: str) -> str:
    return "" if value is None else f"{value:{form}}"
