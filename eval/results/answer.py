"""Owns the words: the answer computed from the results, losses first, and the notes a reader must see.

A difference is called one only where it is significant after Holm; everything else "cannot be told apart", with the
interval and the size of what would have been seen. What could be wrong with a run is in gates.py.
"""

from __future__ import annotations

from typing import Any

from sa_eval.results.gates import weak_cells
from sa_eval.results.scores import FULL
from sa_eval.settings import roles

PERCENT = "\u00a0%"

Row = dict[str, Any]


def points(value: float, *, sign: bool = True) -> str:
    """A share as percentage points."""
    share = round(100 * value, 1) + 0.0  # no -0.0
    text = f"{share:+.1f}" if sign else f"{share:.1f}"
    return text.replace("-", "\u2212")


def answer(results: Row) -> list[str]:
    """One sentence per budget, smallest first: what the arm in focus costs against full, then against its rivals."""
    cells = {cell["arm"]: cell for cell in _pooled(results, ("overall",))}
    sparse = [arm for arm in results["arms"] if arm["mode"] != "full" and arm["name"] in cells]
    if not sparse:
        if FULL in cells:
            return [f"Only full attention was run to the end: {_percent(cells[FULL]['accuracy'])}."]
        return ["No arm was run to the end, so there is nothing to compare."]
    labels = [arm["label"] for arm in sparse]
    focus = next((label for label in roles.methods() if label in labels), labels[0])
    return [_sentence(results, arm, cells) for arm in sparse if arm["label"] == focus]


def _pooled(results: Row, scopes: tuple[str, ...]) -> list[Row]:
    """Cells of these scopes, lengths pooled."""
    cells = [cell for cell in results["cells"] if cell["scope"] in scopes]
    return [cell for cell in cells if cell["length"] == "all"] or cells


def _sentence(results: Row, arm: Row, cells: dict[str, Row]) -> str:
    others = {other["name"]: other["label"] for other in results["arms"]}
    rivals = roles.rivals()  # all pairs are in the report
    rows = [row for row in results["comparisons"] if row["arm"] == arm["name"] and others[row["base"]] in rivals]
    tail = f" and a dense tail of {arm['dense_tail']}" if arm["dense_tail"] else ""
    text = f"With window {arm['window']}{tail}, {arm['label']} {_against_full(cells, arm['name'])}"
    against = _against_rivals([row for row in rows if row["scope"] == "overall"], others)
    if against:
        text += f"; at this budget it {against}"
    weak = {cell["name"] for cell in weak_cells(_pooled(results, ("overall", "family")))}
    return text + "." + _by_family([row for row in rows if row["name"] not in weak], others)


def _against_full(cells: dict[str, Row], name: str) -> str:
    cell = cells[name]
    if "difference" not in cell:
        return f"scores {_percent(cell['accuracy'])}"
    base = cell["accuracy"] - cell["difference"]  # on the same documents, also when the arm is unfinished
    scores = f"{_percent(cell['accuracy'])} against full attention's {_percent(base)}"
    if cell["significant"] and cell["difference"] < 0:
        return f"costs {_size(cell, f'95{PERCENT} interval ')}: {scores}"
    if cell["significant"]:
        return (
            f"scores {_size(cell, f'95{PERCENT} interval ')} above full attention, which deserves suspicion: {scores}"
        )
    seen = cell["detectable"]
    blind = "no difference could be" if seen is None else f"a cost of {points(seen, sign=False)} points could be"
    how = f"{_span(cell)}{_after_holm(cell)}; {blind} seen with these documents"
    return f"cannot be told apart from full attention ({how}): {scores}"


def _against_rivals(rows: list[Row], others: dict[str, str]) -> str:
    lost, won, open_ = _sorted_out(rows)
    parts = ["loses to " + _joined([f"{others[row['base']]} by {_size(row)}" for row in lost])] if lost else []
    parts += ["beats " + _joined([f"{others[row['base']]} by {_size(row)}" for row in won])] if won else []
    told = [f"{others[row['base']]} ({_span(row)}{_after_holm(row)})" for row in open_]
    parts += ["cannot be told apart from " + _joined(told)] if told else []
    return _joined(parts) if parts else ""


def _by_family(rows: list[Row], others: dict[str, str]) -> str:
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


def _sorted_out(rows: list[Row]) -> tuple[list[Row], list[Row], list[Row]]:
    lost = [row for row in rows if row["significant"] and row["difference"] < 0]
    won = [row for row in rows if row["significant"] and row["difference"] > 0]
    return lost, won, [row for row in rows if not row["significant"]]


def _names(rows: list[Row], others: dict[str, str]) -> str:
    return _joined([others[row["base"]] for row in rows])


def _percent(share: float) -> str:
    return points(share, sign=False) + PERCENT


def _size(row: Row, what: str = "") -> str:
    """The size of a gap, unsigned: the verb says the direction."""
    ends = (row["difference_low"], row["difference_high"])
    low, high = sorted(end if row["difference"] > 0 else -end for end in ends)
    size, low, high = (points(value, sign=False) for value in (abs(row["difference"]), low, high))
    return f"{size} points ({what}{low} to {high})"


def _after_holm(row: Row) -> str:
    """Why an interval that leaves out zero is no finding: one of many such looks."""
    alone = row["difference_low"] > 0 or row["difference_high"] < 0
    return f", but p = {row['p_value']:.2g}, {row['p_adjusted']:.2g} after Holm" if alone else ""


def _span(row: Row) -> str:
    return f"{points(row['difference_low'])} to {points(row['difference_high'])} points"


def _joined(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def notes(results: Row) -> list[str]:
    """What a reader must know to read the tables right; computed, never boilerplate that may not apply."""
    return [*_what_ran(results), *_what_was_tested(results), *_luck(results)]


def _what_ran(results: Row) -> list[str]:
    found = []
    scored = [task["name"] for task in results["tasks"] if task["output"] != "generate_until"]
    if scored:
        names = ", ".join(dict.fromkeys(scored))
        found.append(f"Scored by log-likelihood, so only prefill is exercised: {names}.")
    if len(scored) < len(results["tasks"]):
        sparse = [arm for arm in results["arms"] if arm["mode"] != "full"]
        decode = _joined(sorted({arm["options"].get("decode", "full") for arm in sparse}) or ["full"])
        read = " (new tokens read the whole cache)" if decode == "full" else ""
        found.append(f"Generated answers: prefill is sparse, decode is {decode}{read}.")
    for mode in dict.fromkeys(arm["mode"] for arm in results["arms"]):
        if roles.caveat(mode):
            found.append(f"{mode} is {roles.caveat(mode)}.")
    if any(arm["dense_tail"] for arm in results["arms"]):
        found.append("A dense tail comes on top of the window: keys per query are measured with it.")
    return found


def _what_was_tested(results: Row) -> list[str]:
    families = [
        f"{count} difference{'s' if count > 1 else ''} {what}"
        for count, what in (
            (results["tests"]["cells"], "to full"),
            (results["tests"]["comparisons"], "between variants at one budget"),
        )
        if count
    ]
    if not families:
        return []
    return [
        f"Significant means p < 0.05 after Holm's correction over the {' and, apart from them, the '.join(families)} "
        "of this run. Intervals are for one difference at a time, and so is what could be detected (with power 0.8); "
        "with few documents intervals are too narrow, so that one may leave out zero where the test finds nothing."
    ]


def _luck(results: Row) -> list[str]:
    """Seeds and documents are two sources of chance: which of them is larger decides what to add more of."""
    seeds = next((arm["seeds"] for arm in results["arms"] if len(arm["seeds"]) > 1), None)
    if seeds is None or not results["cells"]:
        return []
    cells = [cell for cell in _pooled(results, ("overall",)) if cell["seeds_vary_more"] is not None]
    found = [
        f"Stochastic arms: a document's score is its mean over seeds {_joined(list(map(str, seeds)))}, and intervals "
        "are about other documents, not about other seeds."
    ]
    varying = [
        f"{cell['arm']} (SD {points(cell['seed_sd'], sign=False)} points)" for cell in cells if cell["seeds_vary_more"]
    ]
    if varying:
        found.append(
            f"Seeds differ by more than the choice of documents explains: {_few(varying)}. The intervals are too "
            "narrow for a claim about other seeds: add seeds."
        )
    elif cells:
        found.append("Seeds differ by no more than the choice of documents explains.")
    return found


def _few(items: list[str], most: int = 6) -> str:
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")
