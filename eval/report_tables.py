"""Owns the report's tables: HTML strings from results; every number is taken over, none is computed anew."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from sa_eval.answer import FOCUS, points
from sa_eval.gates import DENSE_ENOUGH
from sa_eval.summary import by_arm_and_length

DEPTHS = 5


def accuracy(results: dict[str, Any]) -> str:
    """Accuracy by arm with intervals, difference to full, budget and latency: one table per length."""
    parts = [
        "<h2>Accuracy by arm</h2>",
        '<p class="soft">In %, with 95 % intervals: Wilson where every score is right or wrong, '
        "bootstrap over documents otherwise. Differences to full are in points, paired by document. "
        "Seed SD: spread between the seeds of a stochastic arm, in points. keys/q: measured keys per query.</p>",
    ]
    lengths = list(dict.fromkeys(cell["length"] for cell in results["cells"]))
    for length in lengths:
        cells = {
            (cell["arm"], cell["scope"], cell["name"]): cell for cell in results["cells"] if cell["length"] == length
        }
        parts.append(f"<h3>{_length(length)}</h3>{_accuracy_table(results, cells, length)}")
    return "".join(parts) if lengths else ""


def _accuracy_table(results: dict[str, Any], cells: dict[Any, Any], length: Any) -> str:
    families = list(dict.fromkeys(name for _, scope, name in cells if scope == "family"))
    budgets, speeds = by_arm_and_length(results["budgets"]), by_arm_and_length(results["speed"])
    head = ["arm", "overall", "vs full", *families, "seed SD"]
    measured = length != "all"
    head += ["keys/q", "density", "prefill ms", "\u00d7 full"] if measured else []
    rows = []
    for arm in results["arms"]:
        overall = cells.get((arm["name"], "overall", "overall"))
        if overall is None:
            continue
        budget, speed = budgets.get((arm["name"], length), {}), speeds.get((arm["name"], length), {})
        row = [
            _arm(arm),
            _share(overall),
            _difference(overall),
            *[_share(cells[arm["name"], "family", family]) for family in families],
            "" if overall["seed_sd"] is None else points(overall["seed_sd"], sign=False),
        ]
        row += (
            [
                _form(budget.get("keys_per_query"), ",.1f"),
                _density(arm, budget),
                _form(speed.get("prefill_ms"), ",.1f"),
                _form(speed.get("prefill_ratio"), ".2f"),
            ]
            if measured
            else []
        )
        rows.append(row)
    return _table(head, rows)


def tasks(results: dict[str, Any]) -> str:
    """Arms by tasks, lengths pooled, tinted by accuracy."""
    cells = [cell for cell in results["cells"] if cell["scope"] == "task"]
    pooled = [cell for cell in cells if cell["length"] == "all"] or cells
    if not pooled:
        return ""
    by_place = {(cell["arm"], cell["name"]): cell for cell in pooled}
    names = list(dict.fromkeys(cell["name"] for cell in pooled))
    rows = [
        [_arm(arm), *[_tinted(by_place[arm["name"], name]) for name in names]]
        for arm in results["arms"]
        if (arm["name"], names[0]) in by_place
    ]
    return (
        '<h2>Per task</h2><p class="soft">Accuracy in %, all lengths together; small print: 95 % interval.</p>'
        + _table(["arm", *[name.replace("_", " ") for name in names]], rows)
    )


def comparisons(results: dict[str, Any]) -> str:
    """Every pair of variants at one budget; each pair once."""
    rows, seen = [], set()
    by_place = {(row["arm"], row["base"], row["name"]): row for row in results["comparisons"]}
    names = list(dict.fromkeys(row["name"] for row in results["comparisons"]))
    labels = {arm["name"]: arm["label"] for arm in results["arms"]}
    for first, second, _ in sorted(by_place, key=lambda place: labels[place[0]] not in FOCUS):  # sa minus the others
        if frozenset((first, second)) not in seen:
            seen.add(frozenset((first, second)))
            rows.append(
                [
                    f"{escape(first)} minus {escape(second)}",
                    *[_difference(by_place[first, second, name]) for name in names],
                ]
            )
    if not rows:
        return ""
    return (
        '<h2>Variants against each other</h2><p class="soft">At the same window, in points, all lengths together. '
        '<span class="win">Better</span> and <span class="loss">worse</span> where the interval excludes zero; '
        "intervals are not corrected for their number.</p>"
        f"<details{' open' if len(rows) <= 12 else ''}><summary>{len(rows)} pairs</summary>"
        + _table(["pair", *names], rows)
        + "</details>"
    )


def budgets(results: dict[str, Any]) -> str:
    """What was asked for and what was measured, over the prompts that were really read."""
    rows = []
    arms = {arm["name"]: arm for arm in results["arms"]}
    for row in results["budgets"]:
        arm = arms[row["arm"]]
        rows.append(
            [
                _arm(arm),
                _length(row["length"]),
                "all" if arm["window"] is None else str(arm["window"]),
                f"{row['keys_per_query']:,.2f}",
                _density(arm, row, digits=3),
                _form(row.get("router_cost_per_query"), ",.1f"),
            ]
        )
    return (
        '<h2>Budgets: asked and measured</h2><p class="soft">Prefill, over the prompts of each length. Decode reads '
        f"the whole cache when decode is full (here: {' or '.join(results['settings']['decode'])}). Router: work on "
        "choosing keys, in score computations per query.</p><details><summary>Table</summary>"
        + _table(["arm", "length", "window asked", "keys per query", "density", "router"], rows)
        + "</details>"
    )


def depths(results: dict[str, Any], records: list[dict[str, Any]]) -> str:
    """Accuracy by where the evidence lies, for documents that know it."""
    found: dict[tuple[str, int], list[float]] = defaultdict(list)
    for record in records:
        if record.get("depth") is not None:
            found[record["arm"], min(DEPTHS - 1, int(record["depth"] * DEPTHS))].append(record["score"])
    if not found:
        return ""
    head = ["arm", *[f"{100 * part // DEPTHS}\u2013{100 * (part + 1) // DEPTHS} %" for part in range(DEPTHS)]]
    rows = []
    for arm in results["arms"]:
        cells = [found.get((arm["name"], part)) for part in range(DEPTHS)]
        if any(cells):
            rows.append(
                [_arm(arm), *[_tint(sum(cell) / len(cell), f"{len(cell)} answers") if cell else "" for cell in cells]]
            )
    return (
        '<h2>By depth of the evidence</h2><p class="soft">Accuracy in % by the position of the asked fact in the '
        "prompt (0 % is the start), all lengths and tasks that have such a position.</p>" + _table(head, rows)
    )


def failures(results: dict[str, Any]) -> str:
    if not results["failures"]:
        return '<h2 id="failures">Failures</h2><p>None.</p>'
    rows = [
        [escape(failure["arm"] or "all"), escape(str(failure["task"] or "the whole arm")), (failure["error"], "text")]
        for failure in results["failures"]
    ]
    return '<h2 id="failures">Failures</h2>' + _table(["arm", "task", ("error", "text")], rows)


def _table(head: Sequence[Any], rows: Iterable[Sequence[Any]]) -> str:
    """Cells are HTML strings, (text, class) pairs that get escaped, or whole <td> elements."""
    heads = "".join(
        f'<th class="{cell[1]}">{escape(cell[0])}</th>' if isinstance(cell, tuple) else f"<th>{escape(cell)}</th>"
        for cell in head
    )
    body = "".join(f"<tr><th>{row[0]}</th>{''.join(_cell(cell) for cell in row[1:])}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(cell: Any) -> str:
    if isinstance(cell, tuple):
        return f'<td class="{cell[1]}">{escape(cell[0])}</td>'
    return cell if cell.startswith("<td") else f"<td>{cell}</td>"


def _arm(arm: dict[str, Any]) -> str:
    untrained = ' <small class="soft">untrained</small>' if arm["label"] == "moba" else ""
    return escape(arm["name"]) + untrained


def _share(cell: dict[str, Any]) -> str:
    return f"{points(cell['accuracy'], sign=False)}<small>{_range(cell['low'], cell['high'], sign=False)}</small>"


def _tinted(cell: dict[str, Any]) -> str:
    return _tint(cell["accuracy"], _range(cell["low"], cell["high"], sign=False))


def _tint(share: float, small: str) -> str:
    return (
        f'<td style="background:rgba(var(--tint),{0.45 * share:.2f})">{points(share, sign=False)}'
        f"<small>{small}</small></td>"
    )


def _difference(cell: dict[str, Any]) -> str:
    if "difference" not in cell:
        return ""
    style = "win" if cell["difference_low"] > 0 else "loss" if cell["difference_high"] < 0 else ""
    return (
        f'<span class="{style}">{points(cell["difference"])}</span>'
        f"<small>{_range(cell['difference_low'], cell['difference_high'])}</small>"
    )


def _range(low: float, high: float, *, sign: bool = True) -> str:
    dash = " to " if sign else "\u2013"
    return f"{points(low, sign=sign)}{dash}{points(high, sign=sign)}"


def _density(arm: dict[str, Any], budget: dict[str, Any], digits: int = 2) -> str:
    if "density" not in budget:
        return ""
    flag = (
        ' <span class="flag">nearly full</span>' if arm["mode"] != "full" and budget["density"] >= DENSE_ENOUGH else ""
    )
    return f"{budget['density']:.{digits}f}{flag}"


def _form(value: float | None, form: str) -> str:
    return "" if value is None else f"{value:{form}}"


def _length(length: Any) -> str:
    return "own lengths" if length is None else "all lengths" if length == "all" else f"{length} tokens"
