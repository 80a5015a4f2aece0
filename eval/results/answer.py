"""The answer in words, computed from the results, losses first.

A difference is called one only where it is significant after Holm; everything else "cannot be told apart". The interval
beside a verdict is the corrected one, which holds 0 exactly where there is no difference to claim, and the size of what
would have been seen is corrected too. Of documents that are too few for any verdict nothing is said but that. What
could be wrong with a run is in gates.py.
"""

from __future__ import annotations

from collections.abc import Iterable

from sa_eval.records.types import FULL, ArmRow
from sa_eval.results.gates import weak_cells
from sa_eval.results.significance import fewest_documents
from sa_eval.results.types import Cell, Comparison, Difference, Family, Results
from sa_eval.settings import roles

PERCENT = "\u00a0%"


def points(value: float, *, sign: bool = True) -> str:
    """A share as percentage points."""
    share = round(100 * value, 1) + 0.0  # no -0.0
    text = f"{share:+.1f}" if sign else f"{share:.1f}"
    return text.replace("-", "\u2212")


def span(low: float, high: float, *, sign: bool = True, between: str = " to ") -> str:
    """Both ends of an interval in percentage points; an end close to 0 keeps the side of it that it is on."""
    return between.join(map(lambda end: _end(end, sign), (low, high)))


def _end(value: float, sign: bool) -> str:
    if value == 0 or abs(value) >= 0.0005:
        return points(value, sign=sign)
    return f"{100 * value:{'+' if sign else ''}.1g}".replace("-", "\u2212")


def focus(results: Results) -> list[ArmRow]:
    """The arms the answer is about, one per budget, smallest first: a plan, or sa, or what is closest to it."""
    answered = {cell.arm for cell in pooled(results, ("overall",))}
    sparse = [arm for arm in results.arms if arm.mode != FULL and arm.name in answered]
    labels = [arm.label for arm in sparse]
    plans = [arm.label for arm in sparse if arm.mode == roles.PLAN]
    asked = [*plans, *(label for label in roles.methods() if label in labels), *labels]
    chosen = asked[0] if asked else ""
    return [arm for arm in sparse if arm.label == chosen]


def rivals(results: Results, arm: ArmRow) -> list[Comparison]:
    """An arm against those it is held against at its budget, overall and by family."""
    labels = roles.rivals()  # all pairs are in the report
    names = {other.name for other in results.arms if other.label in labels}
    return [row for row in results.comparisons if row.arm == arm.name and row.base in names]


def answer(results: Results) -> list[str]:
    """One sentence per budget, smallest first: what the arm in focus costs against full, then against its rivals."""
    cells = {cell.arm: cell for cell in pooled(results, ("overall",))}
    arms = focus(results)
    if not arms:
        if FULL in cells:
            return [f"Only full attention was run to the end: {_percent(cells[FULL].accuracy)}."]
        return ["No arm was run to the end, so there is nothing to compare."]
    return [_sentence(results, arm, cells[arm.name]) for arm in arms]


def pooled(results: Results, scopes: tuple[str, ...]) -> list[Cell]:
    """Cells of these scopes, all lengths together."""
    cells = [cell for cell in results.cells if cell.scope in scopes]
    return [cell for cell in cells if cell.length == "all"] or cells


def _sentence(results: Results, arm: ArmRow, cell: Cell) -> str:
    labels = {other.name: other.label for other in results.arms}
    found = cell.versus_full
    tail = f" and a dense tail of {arm.dense_tail}" if arm.dense_tail else ""
    text = f"With window {arm.window}{tail}, {arm.label} {_against_full(cell)}"
    if found is not None and not found.enough:
        return f"{_too_few(found, results.to_full)} {text}."
    rows = rivals(results, arm)
    weak = {weak.name for weak in weak_cells(pooled(results, ("overall", "family")))}
    overall = [row for row in rows if row.scope == "overall"]
    held = [row for row in overall if row.difference.enough]
    if held:
        text += f". At this budget it {_against_rivals(held, labels)}"
    elif overall:
        few = _too_few(overall[0].difference, results.between_arms)
        return f"{text}. Against {_names(overall, labels)}, {few}"
    families = [row for row in rows if row.scope == "family" and row.name not in weak and row.difference.enough]
    return text + "." + _by_family(families, labels)


def _too_few(found: Difference, family: Family) -> str:
    few = f"{found.paired} document{'s' if found.paired != 1 else ''}: too few to say anything"
    tests = f"{family.tests:,} tests take" if family.tests != 1 else "a test takes"
    return f"{few}; {tests} at least {fewest_documents(family.level)} (--num-samples)."


def _against_full(cell: Cell) -> str:
    found = cell.versus_full
    if found is None:
        return f"scores {_percent(cell.accuracy)}"
    base = cell.accuracy - found.value  # on the same documents, also when the arm is unfinished
    scores = f"{_percent(cell.accuracy)} against full attention's {_percent(base)}"
    if not found.enough:
        return f"scores {scores}"
    interval = f"corrected 95{PERCENT} interval "
    if found.verdict == "worse":
        return f"costs {_size(found, interval)}: {scores}"
    if found.verdict == "better":
        return f"scores {_size(found, interval)} above full attention, which deserves suspicion: {scores}"
    seen = found.detectable
    blind = "no difference could be" if seen is None else f"a cost of {points(seen, sign=False)} points could be"
    how = f"{_interval(found)}; {blind} seen with these documents"
    return f"cannot be told apart from full attention ({how}): {scores}"


def _against_rivals(rows: list[Comparison], labels: dict[str, str]) -> str:
    lost, won, open_ = _sorted_out(rows)
    clauses = []
    if lost:
        clauses.append("loses to " + joined(f"{labels[row.base]} by {_size(row.difference)}" for row in lost))
    if won:
        clauses.append("beats " + joined(f"{labels[row.base]} by {_size(row.difference)}" for row in won))
    if open_:
        names = joined(f"{labels[row.base]} ({_interval(row.difference)})" for row in open_)
        clauses.append(f"cannot be told apart from {names}")
    return joined(clauses)


def _by_family(rows: list[Comparison], labels: dict[str, str]) -> str:
    """Where the winner depends on the family, say so: that is the point of having families."""
    grouped: dict[tuple[bool, bool, str], list[str]] = {}
    for family in dict.fromkeys(row.name for row in rows):
        lost, won, _ = _sorted_out([row for row in rows if row.name == family])
        found = [f"loses to {_names(lost, labels)}"] if lost else []
        found += [f"beats {_names(won, labels)}"] if won else []
        order = (not lost, not won, " and ".join(found) or "shows no difference")
        grouped.setdefault(order, []).append(family)
    clauses = [f"on {joined(families)} it {found}" for (_, _, found), families in sorted(grouped.items())]
    text = "; ".join(clauses)
    return f" {text[0].upper()}{text[1:]}." if len(clauses) > 1 else ""


def _sorted_out(rows: list[Comparison]) -> tuple[list[Comparison], list[Comparison], list[Comparison]]:
    """Lost, won, and neither."""
    lost, won, open_ = (
        [row for row in rows if row.difference.verdict == verdict] for verdict in ("worse", "better", "")
    )
    return lost, won, open_


def _names(rows: list[Comparison], labels: dict[str, str]) -> str:
    return joined(labels[row.base] for row in rows)


def _percent(share: float) -> str:
    return points(share, sign=False) + PERCENT


def _size(found: Difference, what: str = "") -> str:
    """The size of a gap, unsigned: the verb says the direction."""
    ends = (found.corrected_low, found.corrected_high)
    low, high = sorted(end if found.value > 0 else -end for end in ends)
    return f"{points(abs(found.value), sign=False)} points ({what}{span(low, high, sign=False)})"


def _interval(found: Difference) -> str:
    return f"{span(found.corrected_low, found.corrected_high)} points"


def joined(items: Iterable[str]) -> str:
    found = list(items)
    return found[0] if len(found) == 1 else ", ".join(found[:-1]) + " and " + found[-1]
