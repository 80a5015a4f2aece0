"""Owns the report's tables: every number is taken over from the results, none is computed anew."""

from __future__ import annotations

from typing import Any

from sa_eval.page.charts import Heatmap
from sa_eval.page.parts import Cell, Table, amount, chance, difference, length_name, rows_of, share, span, words
from sa_eval.results.answer import points
from sa_eval.results.gates import DENSE_ENOUGH
from sa_eval.results.summary import by_arm_and_length
from sa_eval.settings import roles

Results = dict[str, Any]


def accuracy(results: Results, length: Any) -> Table:
    """One row per arm: overall, against full with its p-value, families, budget."""
    cells = _cells(results, length)
    families = list(dict.fromkeys(name for _, scope, name in cells if scope == "family"))
    budgets = by_arm_and_length(results["budgets"])
    rows = []
    for arm in results["arms"]:
        overall = cells.get((arm["name"], "overall", "overall"))
        if overall is None:
            continue
        budget = budgets.get((arm["name"], length), {})
        row = [_arm(arm), share(overall), difference(overall), *_tested(overall)]
        row += [_answered(cells.get((arm["name"], "family", family))) for family in families]
        rows.append(row + ([] if length == "all" else [_keys(arm, budget)]))
    budget_columns = () if length == "all" else ("keys per query",)
    columns = ("arm", "overall", "vs full", "won, lost", "p, corrected", "detectable", *families, *budget_columns)
    return Table(f"Accuracy by arm, {length_name(length)}: %, 95 % intervals", columns, rows_of(rows))


def tasks(results: Results, length: Any) -> Table:
    """Arms by tasks."""
    cells = _cells(results, length)
    names = list(dict.fromkeys(name for _, scope, name in cells if scope == "task"))
    arms = [arm for arm in results["arms"] if any((arm["name"], "task", name) in cells for name in names)]
    rows = [[_arm(arm), *[_answered(cells.get((arm["name"], "task", name))) for name in names]] for arm in arms]
    columns = ("arm", *[name.replace("_", " ") for name in names])
    return Table(f"Accuracy by task, {length_name(length)}: %, 95 % intervals", columns, rows_of(rows))


def comparisons(results: Results) -> Table:
    """Every pair of variants at one budget; each pair once, the one in question first."""
    by_place = {(row["arm"], row["base"], row["name"]): row for row in results["comparisons"]}
    names = list(dict.fromkeys(row["name"] for row in results["comparisons"]))
    labels = {arm["name"]: arm["label"] for arm in results["arms"]}
    rows, seen, methods = [], set(), roles.methods()
    for first, second, _ in sorted(by_place, key=lambda place: labels[place[0]] not in methods):
        if frozenset((first, second)) not in seen:
            seen.add(frozenset((first, second)))
            found = [difference(by_place.get((first, second, name), {})) for name in names]
            rows.append([words(f"{first} minus {second}"), *found])
    return Table("Pairs of variants at one budget: points, 95 % intervals", ("pair", *names), rows_of(rows))


def budgets(results: Results) -> Table:
    """What was asked for and what was measured, over the prompts that were really read."""
    arms = {arm["name"]: arm for arm in results["arms"]}
    rows = []
    for row in results["budgets"]:
        arm = arms[row["arm"]]
        window = Cell("all keys", value=None) if arm["window"] is None else amount(arm["window"], "")
        off = Cell("") if arm["window"] is None else amount(row["off_target"], "+.1%")
        rows.append(
            [
                _arm(arm),
                _length(row["length"]),
                window,
                amount(arm["dense_tail"], ""),
                amount(row["keys_per_query"], ",.2f"),
                off,
                _density(arm, row, digits=3),
                amount(row["router_cost_per_query"], ",.1f"),
                words("exact" if row["exact"] else "estimated"),
            ]
        )
    columns = ("arm", "length", "window asked", "dense tail", "keys per query", "off target", "density", "router cost")
    return Table("Budgets asked and measured, prefill", (*columns, "text:count"), rows_of(rows))


def speed(results: Results) -> Table:
    """What each arm costs beside what it answers, per measured length."""
    arms = {arm["name"]: arm for arm in results["arms"]}
    overall = by_arm_and_length(cell for cell in results["cells"] if cell["scope"] == "overall")
    rows = []
    for row in results["speed"]:
        cell = overall.get((row["arm"], row["length"]))
        repeats = f"{min(row['repeats_ms']):,.1f}\u2013{max(row['repeats_ms']):,.1f}"
        rows.append(
            [
                _arm(arms[row["arm"]]),
                _length(row["length"]),
                share(cell) if cell else Cell("not finished", style="absent"),
                amount(row["prefill_ms"], ",.1f", repeats),
                amount(row["prefill_ratio"], ".2f"),
                amount(row["decode_tokens_per_s"], ",.1f"),
                amount(row["peak_gib"], ",.3g"),
            ]
        )
    columns = ("arm", "length", "accuracy, %", "prefill, ms", "time, \u00d7 full", "decode, tokens per s", "peak, GiB")
    return Table("Latency, decode speed and memory beside accuracy", columns, rows_of(rows))


def seeds(results: Results) -> Table:
    """Arms with several seeds: how far seeds scatter beside how far documents do."""
    counts = {arm["name"]: arm for arm in results["arms"] if len(arm["seeds"]) > 1}
    rows = []
    for cell in results["cells"]:
        if cell["arm"] in counts and cell["scope"] != "task" and cell["seed_sd"] is not None:
            arm = counts[cell["arm"]]
            wide = "seeds scatter more" if cell["seeds_vary_more"] else ""
            seed_sd = Cell(points(cell["seed_sd"], sign=False), wide, cell["seed_sd"], "flag" if wide else "")
            sampling_sd = _points(cell["sampling_sd"])
            interval = Cell(span(cell["low"], cell["high"], sign=False), value=cell["high"] - cell["low"])
            where = [_length(cell["length"]), words(cell["name"])]
            share_only = Cell(points(cell["accuracy"], sign=False), value=cell["accuracy"])
            numbers = [share_only, interval, sampling_sd, seed_sd, amount(len(arm["seeds"]), "")]
            rows.append([_arm(arm), *where, *numbers])
    found = ("interval over documents", "SD over documents", "SD between seeds", "seeds")
    columns = ("arm", "length", "text:family", "accuracy, %", *found)
    return Table("Spread between seeds beside the error of sampling documents", columns, rows_of(rows))


def published(results: Results) -> Table:
    """Reference numbers with what this run measured at the same window; lengths pooled, as far as there are several."""
    cells: dict[tuple[str, str], dict[str, Any]] = {}
    for cell in results["cells"]:  # tasks come after families and win, as does the pooled length
        cells[cell["arm"], cell["name"]] = cell
    rows = []
    for row in results["published"]:
        name = "overall" if row["name"] == "average" else row["name"]
        matching = [a for a in results["arms"] if a["label"] == row["label"] and a["window"] == row["window"]]
        for arm in matching or [None]:
            cell = cells.get((arm["name"], name)) if arm else None
            rows.append(
                [
                    words(arm["name"] if arm else row["label"]),
                    Cell("all keys") if row["window"] is None else amount(row["window"], ""),
                    words(row["name"]),
                    Cell(points(row["value"], sign=False), value=row["value"]),
                    share(cell) if cell else amount(None, ""),
                    words(row["source"]),
                ]
            )
    columns = ("arm", "window", "text:task", "published, %", "measured, %", "text:source")
    return Table("Published numbers beside those of this run", columns, rows_of(rows))


def depths(heatmaps: list[Heatmap]) -> Table:
    """The numbers in the heatmaps, with how many answers each rests on."""
    columns = ("arm", "text:depth", *[f"{column} tokens" for column in heatmaps[0].columns])
    rows = [
        [
            words(heatmap.title),
            words(depth),
            *[_answers(value, count) for value, count in zip(shares, counts, strict=True)],
        ]
        for heatmap in heatmaps
        for depth, shares, counts in zip(heatmap.rows, heatmap.shares, heatmap.counts, strict=True)
    ]
    return Table("Accuracy in % by depth and length, and answers counted", columns, rows_of(rows))


def _cells(results: Results, length: Any) -> dict[tuple[str, str, str], dict[str, Any]]:
    return {(cell["arm"], cell["scope"], cell["name"]): cell for cell in results["cells"] if cell["length"] == length}


def _tested(cell: dict[str, Any]) -> list[Cell]:
    if "difference" not in cell:
        return [Cell(""), Cell(""), Cell("")]
    documents = Cell(f"{cell['won']}, {cell['lost']}", f"of {cell['documents']}", cell["won"] - cell["lost"])
    test = Cell(chance(cell["p_adjusted"]), cell["test"], cell["p_adjusted"])
    return [documents, test, _points(cell["detectable"])]


def _answered(cell: dict[str, Any] | None) -> Cell:
    return Cell("not finished", style="absent") if cell is None else share(cell, tinted=True)


def _points(value: float | None) -> Cell:
    return Cell("") if value is None else Cell(points(value, sign=False), value=value)


def _answers(value: float | None, count: int) -> Cell:
    return Cell("") if value is None else Cell(points(value, sign=False), f"{count} answers", value, tint=value)


def _arm(arm: dict[str, Any]) -> Cell:
    return words(arm["name"], "untrained" if roles.is_untrained(arm["mode"]) else "")


def _length(length: Any) -> Cell:
    text = "own" if length is None else "all" if length == "all" else f"{length:,}"
    return Cell(text, value=length if isinstance(length, int) else None)


def _keys(arm: dict[str, Any], budget: dict[str, Any]) -> Cell:
    """Keys per query over the density, which says how far from full attention they are."""
    density = _density(arm, budget)
    cell = amount(budget.get("keys_per_query"), ",.1f", f"density {density.text}")
    return Cell(cell.text, density.small or cell.small, cell.value, density.style)


def _density(arm: dict[str, Any], budget: dict[str, Any], digits: int = 2) -> Cell:
    cell = amount(budget.get("density"), f".{digits}f")
    dense = arm["name"] != "full" and budget.get("density", 0) >= DENSE_ENOUGH
    return Cell(cell.text, "nearly full", cell.value, "flag") if dense else cell
