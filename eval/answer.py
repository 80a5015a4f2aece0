"""Owns the words: the answer computed from the results, losses first, and the notes a reader must see."""

from __future__ import annotations

from typing import Any

DENSE_ENOUGH = 0.9  # at this density equality with full says nothing
TOLERANCE = 0.05  # a measured budget further off than this is not matched
FLOOR = 0.5  # below this, full attention itself cannot do the task
RIVALS = ("swa", "moba")  # what the paper compares sa with; all pairs are in the report's table
FOCUS = ("sa", "sa-bucket", "sa-circular", "sa-dyadic", "sa-dyadic-bucket", "sa+swa")


def points(value: float, *, sign: bool = True) -> str:
    """A share as percentage points."""
    text = f"{100 * value:+.1f}" if sign else f"{100 * value:.1f}"
    return text.replace("-", "\u2212")


def answer(results: dict[str, Any]) -> list[str]:
    """One sentence per budget, smallest first; within a sentence losses come before wins."""
    sparse = [arm for arm in results["arms"] if arm["mode"] != "full" and arm["name"] not in results["unfinished"]]
    cells = _overall(results)
    if not sparse or not cells:
        if "full" in cells:
            return [f"Only full attention was run to the end: {points(cells['full']['accuracy'], sign=False)}\u00a0%."]
        return ["No arm was run to the end, so there is nothing to compare."]
    labels = [arm["label"] for arm in sparse]
    focus = next((label for label in FOCUS if label in labels), labels[0])
    return [_sentence(results, arm, cells) for arm in sparse if arm["label"] == focus]


def _overall(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Each arm's overall cell, lengths pooled."""
    return {cell["arm"]: cell for cell in _pooled(results, ("overall",))}


def _weak(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Where full attention itself fails: what a variant does there says nothing about the variant."""
    cells = _pooled(results, ("overall", "family"))
    return [cell for cell in cells if cell["arm"] == "full" and cell["accuracy"] < FLOOR]


def _pooled(results: dict[str, Any], scopes: tuple[str, ...]) -> list[dict[str, Any]]:
    cells = [cell for cell in results["cells"] if cell["scope"] in scopes]
    return [cell for cell in cells if cell["length"] == "all"] or cells


def _sentence(results: dict[str, Any], arm: dict[str, Any], cells: dict[str, dict[str, Any]]) -> str:
    others = {other["name"]: other["label"] for other in results["arms"]}
    rows = [row for row in results["comparisons"] if row["arm"] == arm["name"] and others[row["base"]] in RIVALS]
    lost, won, open_ = _sorted_out([row for row in rows if row["scope"] == "overall"])
    parts = ["loses to " + _joined([_by(row, others) for row in lost])] if lost else []
    parts += ["beats " + _joined([_by(row, others) for row in won])] if won else []
    parts += ["cannot be told apart from " + _joined([_tie(row, others) for row in open_])] if open_ else []
    cell = cells[arm["name"]]
    tail = f" and a dense tail of {arm['dense_tail']}" if arm["dense_tail"] else ""
    head = f"With window {arm['window']}{tail}, {arm['label']} " + (f"{_joined(parts)}; it " if parts else "")
    head += f"scores {points(cell['accuracy'], sign=False)}\u00a0%"
    if "difference" in cell:
        head += (
            f" against full attention's {points(cells['full']['accuracy'], sign=False)}\u00a0% (95\u00a0% intervals)"
        )
    weak = [cell["name"] for cell in _weak(results)]
    return head + "." + _by_family([row for row in rows if row["name"] not in weak], others)


def _by_family(rows: list[dict[str, Any]], others: dict[str, str]) -> str:
    """Where the winner depends on the family, say so: that is the point of having families."""
    grouped: dict[tuple[bool, bool, str], list[str]] = {}
    for family in dict.fromkeys(row["name"] for row in rows if row["scope"] == "family"):
        lost, won, _ = _sorted_out([row for row in rows if row["scope"] == "family" and row["name"] == family])
        found = [f"loses to {_names(lost, others)}"] if lost else []
        found += [f"beats {_names(won, others)}"] if won else []
        order = (not lost, not won, " and ".join(found) or "shows no difference")
        grouped.setdefault(order, []).append(family)
    clauses = [f"on {_joined(families)} it {found}" for (_, _, found), families in sorted(grouped.items())]
    text = "; ".join(clauses)
    return f" {text[0].upper()}{text[1:]}." if len(clauses) > 1 else ""


def _sorted_out(rows: list[dict[str, Any]]) -> tuple[list[Any], list[Any], list[Any]]:
    lost = [row for row in rows if row["difference_high"] < 0]
    won = [row for row in rows if row["difference_low"] > 0]
    return lost, won, [row for row in rows if row not in lost and row not in won]


def _names(rows: list[dict[str, Any]], others: dict[str, str]) -> str:
    return _joined([others[row["base"]] for row in rows])


def _by(row: dict[str, Any], others: dict[str, str]) -> str:
    """A rival with the size of the gap, unsigned: the verb says the direction."""
    low, high = sorted((abs(row["difference_low"]), abs(row["difference_high"])))
    return (
        f"{others[row['base']]} by {points(abs(row['difference']), sign=False)} points "
        f"({points(low, sign=False)} to {points(high, sign=False)})"
    )


def _tie(row: dict[str, Any], others: dict[str, str]) -> str:
    return f"{others[row['base']]} ({points(row['difference_low'])} to {points(row['difference_high'])} points)"


def _joined(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def notes(results: dict[str, Any]) -> list[str]:
    """What a reader must know to read the table right; computed, never boilerplate that may not apply."""
    found = []
    scored = [task["name"] for task in results["tasks"] if task["output"] != "generate_until"]
    if scored:
        names = ", ".join(dict.fromkeys(scored))
        found.append(f"Scored by log-likelihood, so only prefill is exercised: {names}.")
    if len(scored) < len(results["tasks"]):
        decode = " or ".join(results["settings"]["decode"])
        found.append(
            f"Generated answers: prefill is sparse, decode is {decode}"
            + (" (new tokens read the whole cache)." if decode == "full" else ".")
        )
    seeds = next((arm["seeds"] for arm in results["arms"] if len(arm["seeds"]) > 1), None)
    if seeds:
        found.append(f"Stochastic arms: a document's score is its mean over seeds {_joined(list(map(str, seeds)))}.")
    if any(arm["label"] == "moba" for arm in results["arms"]):
        found.append("moba is untrained here: its authors made it for continued training.")
    if any(arm["label"] == "sa+swa" for arm in results["arms"]):
        found.append("sa+swa is the training-free union of both patterns, not the paper's trained gate.")
    dense = [
        f"{row['arm']} at {row['length'] or 'own lengths'} ({row['density']:.2f})"
        for row in results["budgets"]
        if row["arm"] != "full" and row["density"] >= DENSE_ENOUGH
    ]
    if dense:
        found.append(
            f"Nearly full attention (density at least {DENSE_ENOUGH}), so equality means nothing: {_few(dense)}."
        )
    uncharged = {arm["name"] for arm in results["arms"] if arm["dense_tail"]}
    missed = [
        f"{row['arm']} at {row['length'] or 'own lengths'} ({row['off_target']:+.0%})"
        for row in results["budgets"]
        if abs(row.get("off_target", 0)) > TOLERANCE and row["density"] < DENSE_ENOUGH and row["arm"] not in uncharged
    ]
    if missed:
        found.append(f"Measured budget off the window asked for: {_few(missed)}.")
    if uncharged:
        found.append("A dense tail comes on top of the window: keys per query are measured with it.")
    cells = _overall(results)
    weak = [f"{cell['name']} {points(cell['accuracy'], sign=False)}\u00a0%" for cell in _weak(results)]
    if weak:
        found.append(
            f"Full attention itself is weak here, so nothing is learned about what a variant costs: {', '.join(weak)}."
        )
    better = [name for name, cell in cells.items() if cell.get("difference_low", -1) > 0]
    if better:
        found.append(f"Significantly above full attention, which deserves suspicion: {', '.join(better)}.")
    return found + _trouble(results)


def _few(items: list[str], most: int = 6) -> str:
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")


def _trouble(results: dict[str, Any]) -> list[str]:
    found = []
    idle = [run["arm"] for run in results["arm_runs"] if run["arm"] != "full" and _sparse_calls(run["calls"]) == 0]
    if idle:
        found.append(f"No sparse prefill happened in {', '.join(dict.fromkeys(idle))}: these arms ran dense.")
    if results["failures"]:
        found.append(f"{len(results['failures'])} failure(s); a failed document counts as wrong.")
    if results["unfinished"]:
        found.append(f"Not finished, so not in the tables: {', '.join(results['unfinished'])}.")
    return found


def _sparse_calls(calls: Any) -> int | None:
    """Sparse prefill calls summed over layers; None when the patch does not say."""
    if isinstance(calls, dict) and "sparse_prefill" in calls:
        return int(calls["sparse_prefill"])
    layers = calls.values() if isinstance(calls, dict) else calls if isinstance(calls, list) else ()
    counts = [layer["sparse_prefill"] for layer in layers if isinstance(layer, dict) and "sparse_prefill" in layer]
    return int(sum(counts)) if counts else None
