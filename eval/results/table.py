"""Owns the terminal table: what did not pass first, then aligned plain text per length. Reads results only."""

from __future__ import annotations

import textwrap
from typing import Any

from sa_eval.results.summary import by_arm_and_length

WIDTH = 118
SENTENCES = 4  # the report has all of them
PLACES = 4  # of a gate; the report has all of them
MARK = "\u2020"
DASH = "\u2013"


def render(results: dict[str, Any]) -> str:
    """The whole answer for a terminal: sentence, gates that did not pass, one table per length, notes."""
    blocks = ["\n".join(textwrap.wrap(sentence, WIDTH)) for sentence in results["answer"][:SENTENCES]]
    blocks += ["\n".join(_bullet(mark, text) for mark, text in _gates(results["gates"]))]
    lengths = list(dict.fromkeys(task["length"] for task in results["tasks"]))
    blocks += [_block(results, length) for length in lengths]
    lines = [
        *results["notes"],
        "Accuracy in %, 95\u00a0% interval in brackets; vs full: points, paired by document; "
        f"{MARK} significant after Holm's correction.",
    ]
    blocks.append("\n".join(_bullet("*", line) for line in lines))
    failures = [
        f"  ! {_where(failure)}: {failure['error'].splitlines()[0][:WIDTH]}" for failure in results["failures"][:10]
    ]
    if failures:
        hidden = len(results["failures"]) - len(failures)
        blocks.append(
            "\n".join(["Failures:", *failures, *([f"  ! and {hidden} more (failures.jsonl)"] if hidden else [])])
        )
    return "\n\n".join(block for block in blocks if block)


def _gates(gates: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Those that did not pass, and how many did."""
    found = []
    for gate in gates:
        if gate["status"] != "passed":
            hidden = len(gate["where"]) - PLACES
            where = ", ".join(gate["where"][:PLACES]) + (f" and {hidden} more" if hidden > 0 else "")
            text = f"{gate['gate']}: {gate['text']}{f' {where}.' if where else ''}"
            found.append(("!!" if gate["status"] == "failed" else "!", text))
    return [*found, ("*", f"{len(gates) - len(found)} of {len(gates)} gates passed.")]


def _bullet(mark: str, text: str) -> str:
    return textwrap.fill(text, WIDTH, initial_indent=f"{mark:>3} ", subsequent_indent="    ")


def _block(results: dict[str, Any], length: Any) -> str:
    cells = {(cell["arm"], cell["scope"], cell["name"]): cell for cell in results["cells"] if cell["length"] == length}
    families = [name for scope, name in dict.fromkeys((scope, name) for _, scope, name in cells) if scope == "family"]
    budgets, speeds = by_arm_and_length(results["budgets"]), by_arm_and_length(results["speed"])
    shown = [arm["name"] for arm in results["arms"] if (arm["name"], "overall", "overall") in cells]
    header = [
        "",
        *[_heading(family) for family in families],
        "overall",
        "vs full",
        "keys/q",
        "density",
        "prefill ms",
        "time/full",
    ]
    rows = []
    for name in shown:
        overall = cells[name, "overall", "overall"]
        budget, speed = budgets.get((name, length), {}), speeds.get((name, length), {})
        rows.append(
            [
                name,
                *[_percent(cells[name, "family", family]["accuracy"]) for family in families],
                f"{_percent(overall['accuracy'])} {_bracket(overall['low'], overall['high'])}",
                _difference(overall),
                _number(budget.get("keys_per_query"), ".0f"),
                _number(budget.get("density"), ".2f"),
                _number(speed.get("prefill_ms"), ".1f"),
                _number(speed.get("prefill_ratio"), ".2f"),
            ]
        )
    title = "Tasks with their own lengths" if length is None else f"Length {length} tokens"
    counts = sorted({cells[name, "overall", "overall"]["documents"] for name in shown}) or [0]
    documents = str(counts[-1]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    table = f"{title} ({documents} documents per arm)\n" + aligned([header, *rows])
    return f"{table}\n{_detectable([cells[name, 'overall', 'overall'] for name in shown])}".rstrip()


def _detectable(cells: list[dict[str, Any]]) -> str:
    """What this many documents could have shown."""
    tested = [cell for cell in cells if cell["p_value"] is not None]
    found = [cell["detectable"] for cell in tested if cell["detectable"] is not None]
    if not tested:
        return ""
    if not found:
        return "No overall difference to full could be detected with so few documents."
    low, high = (f"{100 * value:.1f}" for value in (min(found), max(found)))
    size = f"{low} points" if low == high else f"{low} to {high} points, depending on the arm"
    return f"Detectable overall with power 0.8: a true difference to full of {size}."


def aligned(rows: list[list[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), *[cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]]
        )
        for row in rows
    ]
    return "\n".join([lines[0], DASH * len(lines[0]), *lines[1:]])


def _heading(family: str) -> str:
    return {"retrieval": "retriev", "aggregation": "aggreg"}.get(family, family)


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _bracket(low: float, high: float, sign: str = "") -> str:
    return f"[{100 * low:{sign}.0f}, {100 * high:{sign}.0f}]"


def _difference(cell: dict[str, Any]) -> str:
    if "difference" not in cell:
        return ""
    mark = MARK if cell["significant"] else " "
    return f"{100 * cell['difference']:+.1f}{mark} {_bracket(cell['difference_low'], cell['difference_high'], '+')}"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else f"{value:{form}}"


def _where(failure: dict[str, Any]) -> str:
    return " · ".join(str(part) for part in (failure["arm"], failure["task"]) if part) or "run"
