"""The report's tables: every number is taken over from the results, none is computed anew."""

from __future__ import annotations

from sa_eval.page.content import (
    TOO_FEW,
    Column,
    Field,
    Table,
    amount,
    chance,
    columns,
    difference,
    extra,
    length_name,
    rows_of,
    share,
    span,
    text,
    words,
)
from sa_eval.page.plots import Heatmap
from sa_eval.records.types import FULL, ArmRow, Budget
from sa_eval.results.answer import focus, points, pooled, rivals
from sa_eval.results.gates import DENSE_ENOUGH
from sa_eval.results.summary import by_arm_and_length
from sa_eval.results.types import Cell, Difference, Length, Results
from sa_eval.settings import roles


def evidence(results: Results) -> Table:
    """What the answer rests on: the arm in focus against full, and against its rivals at its budget."""
    overall = {cell.arm: cell for cell in pooled(results, ("overall",))}
    rows = []
    for arm in focus(results):
        pairs = [(FULL, overall[arm.name].versus_full)]
        pairs += [(row.base, row.difference) for row in rivals(results, arm) if row.scope == "overall"]
        rows += [
            [words(f"{arm.name} minus {base}"), difference(found), *_tested(found)]
            for base, found in pairs
            if found is not None
        ]
    heads = columns("pair", "points", extra("won, lost"), extra("p, corrected"), extra("detectable"))
    return Table("What the answer rests on: points, paired by document, corrected intervals", heads, rows_of(rows))


def accuracy(results: Results, length: Length) -> Table:
    """One row per arm: overall, against full with its p-value, families, budget."""
    cells = _cells(results, length)
    families = list(dict.fromkeys(name for _, scope, name in cells if scope == "family"))
    budgets = by_arm_and_length(results.budgets)
    rows = []
    for arm in results.arms:
        overall = cells.get((arm.name, "overall", "overall"))
        if overall is None:
            continue
        row = [_arm(arm), share(overall), difference(overall.versus_full), *_tested(overall.versus_full)]
        row += [_answered(cells.get((arm.name, "family", family))) for family in families]
        rows.append(row + ([] if length == "all" else [_keys(arm, budgets.get((arm.name, length)))]))
    heads = columns("arm", "overall", "vs full", extra("won, lost"), extra("p, corrected"), extra("detectable"))
    heads += tuple(map(extra, families)) + (() if length == "all" else columns(extra("keys per query")))
    return Table(f"Accuracy by arm, {length_name(length)}: %, 95 % intervals", heads, rows_of(rows))


def tasks(results: Results, length: Length) -> Table:
    """Arms by tasks."""
    cells = _cells(results, length)
    names = list(dict.fromkeys(name for _, scope, name in cells if scope == "task"))
    arms = [arm for arm in results.arms if any((arm.name, "task", name) in cells for name in names)]
    rows = [[_arm(arm), *[_answered(cells.get((arm.name, "task", name))) for name in names]] for arm in arms]
    heads = columns("arm", *[name.replace("_", " ") for name in names])
    return Table(f"Accuracy by task, {length_name(length)}: %, 95 % intervals", heads, rows_of(rows))


def comparisons(results: Results) -> Table:
    """Every pair of variants at one budget; each pair once, the one in question first."""
    found = {(row.arm, row.base, row.name): row.difference for row in results.comparisons}
    names = list(dict.fromkeys(row.name for row in results.comparisons))
    methods = {arm.name for arm in results.arms if roles.is_method(arm.mode, arm.label)}
    rows, seen = [], set()
    for first, second, _ in sorted(found, key=lambda key: key[0] not in methods):
        if frozenset((first, second)) not in seen:
            seen.add(frozenset((first, second)))
            pair = [difference(found.get((first, second, name))) for name in names]
            rows.append([words(f"{first} minus {second}"), *pair])
    heads = columns("pair", *names[:1], *map(extra, names[1:]))
    return Table("Pairs of variants at one budget: points, corrected intervals", heads, rows_of(rows))


def budgets(results: Results) -> Table:
    """What was asked for and what was measured, over the prompts that were really read."""
    arms = {arm.name: arm for arm in results.arms}
    rows = []
    for row in results.budgets:
        arm = arms[row.arm]
        rows.append(
            [
                _arm(arm),
                _length(row.length),
                Field("all keys") if arm.window is None else amount(arm.window, ""),
                amount(arm.dense_tail, ""),
                amount(row.keys_per_query, ",.2f"),
                Field("") if arm.window is None else amount(row.off_target, "+.1%"),
                _density(arm, row, digits=3),
                amount(row.router_cost_per_query, ",.1f"),
                words("exact" if row.exact else "estimated"),
            ]
        )
    heads = columns("arm", "length", "window asked", extra("dense tail"), "keys per query", extra("off target"))
    heads += columns(extra("density"), extra("router cost"), Column("count", text=True, extra=True))
    return Table("Budgets asked and measured, prefill", heads, rows_of(rows))


def speed(results: Results) -> Table:
    """What each arm costs beside what it answers, per measured length."""
    arms = {arm.name: arm for arm in results.arms}
    overall = {(cell.arm, cell.length): cell for cell in results.cells if cell.scope == "overall"}
    rows = []
    for row in results.speed:
        cell = overall.get((row.arm, row.length))
        repeats = f"{min(row.repeats_ms):,.1f}\u2013{max(row.repeats_ms):,.1f}"
        rows.append(
            [
                _arm(arms[row.arm]),
                _length(row.length),
                share(cell) if cell else Field("not finished", style="absent"),
                amount(row.prefill_ms, ",.1f", repeats),
                amount(row.speedup, ".2f"),
                amount(row.decode_tokens_per_s, ",.1f"),
                amount(row.peak_gib, ",.3g"),
            ]
        )
    heads = columns("arm", "length", extra("accuracy, %"), extra("prefill, ms"), "\u00d7 full")
    heads += columns(extra("decode, tokens per s"), extra("peak, GiB"))
    return Table("Latency, decode speed and memory beside accuracy", heads, rows_of(rows))


def seeds(results: Results) -> Table:
    """Arms with several seeds: how far seeds scatter beside how far documents do."""
    arms = {arm.name: arm for arm in results.arms if len(arm.seeds) > 1}
    rows = []
    for cell in results.cells:
        if cell.arm in arms and cell.scope != "task" and cell.seed_sd is not None:
            arm = arms[cell.arm]
            wide = "seeds scatter more" if cell.seeds_vary_more else ""
            rows.append(
                [
                    _arm(arm),
                    _length(cell.length),
                    words(cell.name),
                    Field(points(cell.accuracy, sign=False), value=cell.accuracy),
                    Field(span(cell.low, cell.high, sign=False), value=cell.high - cell.low),
                    _points(cell.sampling_sd),
                    Field(points(cell.seed_sd, sign=False), wide, cell.seed_sd, "flag" if wide else ""),
                    amount(len(arm.seeds), ""),
                ]
            )
    heads = columns("arm", extra("length"), text("family"), extra("accuracy, %"), extra("interval over documents"))
    heads += columns("SD over documents", "SD between seeds", extra("seeds"))
    return Table("Spread between seeds beside the error of sampling documents", heads, rows_of(rows))


def published(results: Results) -> Table:
    """Reference numbers with what this run measured at the same window; lengths pooled, as far as there are several."""
    cells: dict[tuple[str, str], Cell] = {}
    for cell in results.cells:  # tasks come after families and win, as does the pooled length
        cells[cell.arm, cell.name] = cell
    rows = []
    for row in results.published:
        name = "overall" if row.name == "average" else row.name
        matching = [arm for arm in results.arms if arm.label == row.label and arm.window == row.window]
        for arm in matching or [None]:
            cell = cells.get((arm.name, name)) if arm else None
            rows.append(
                [
                    words(arm.name if arm else row.label),
                    Field("all keys") if row.window is None else amount(row.window, ""),
                    words(row.name),
                    Field(points(row.value, sign=False), value=row.value),
                    share(cell) if cell else amount(None, ""),
                    words(row.source),
                ]
            )
    heads = columns("arm", extra("window"), text("task"), "published, %", "measured, %")
    return Table(
        "Published numbers beside those of this run",
        (*heads, Column("source", text=True, extra=True)),
        rows_of(rows),
    )


def depths(heatmaps: list[Heatmap]) -> Table:
    """The numbers in the heatmaps, with how many answers each rests on."""
    heads = columns("arm", text("depth"), *[f"{column} tokens" for column in heatmaps[0].columns])
    rows = [
        [
            words(heatmap.title),
            words(depth),
            *[_answers(value, count) for value, count in zip(shares, counts, strict=True)],
        ]
        for heatmap in heatmaps
        for depth, shares, counts in zip(heatmap.rows, heatmap.shares, heatmap.counts, strict=True)
    ]
    return Table("Accuracy in % by depth and length, and answers counted", heads, rows_of(rows))


def _cells(results: Results, length: Length) -> dict[tuple[str, str, str], Cell]:
    return {(cell.arm, cell.scope, cell.name): cell for cell in results.cells if cell.length == length}


def _tested(found: Difference | None) -> list[Field]:
    """Documents won and lost, the corrected p-value, and what was detectable."""
    if found is None:
        return [Field(""), Field(""), Field("")]
    paired = "" if found.paired is None else f"of {found.paired}"
    documents = Field(f"{found.won}, {found.lost}", paired, found.won - found.lost)
    if not found.enough:
        return [documents, Field(TOO_FEW, style="absent"), Field("")]
    return [documents, Field(chance(found.p_adjusted), found.test, found.p_adjusted), _points(found.detectable)]


def _answered(cell: Cell | None) -> Field:
    return Field("not finished", style="absent") if cell is None else share(cell, tinted=True)


def _points(value: float | None) -> Field:
    return Field("") if value is None else Field(points(value, sign=False), value=value)


def _answers(value: float | None, count: int) -> Field:
    return Field("") if value is None else Field(points(value, sign=False), f"{count} answers", value, tint=value)


def _arm(arm: ArmRow) -> Field:
    return words(arm.name, "untrained" if roles.is_untrained(arm.mode) else "")


def _length(length: Length) -> Field:
    name = "own" if length is None else "all" if length == "all" else f"{length:,}"
    return Field(name, value=length if isinstance(length, int) else None)


def _keys(arm: ArmRow, budget: Budget | None) -> Field:
    """Keys per query over the density, which says how far from full attention they are."""
    if budget is None:
        return amount(None, "")
    density = _density(arm, budget)
    cell = amount(budget.keys_per_query, ",.1f", f"density {density.text}")
    return Field(cell.text, density.small or cell.small, cell.value, density.style)


def _density(arm: ArmRow, budget: Budget, digits: int = 2) -> Field:
    cell = amount(budget.density, f".{digits}f")
    dense = arm.name != FULL and budget.density >= DENSE_ENOUGH
    return Field(cell.text, "nearly full", cell.value, "flag") if dense else cell
