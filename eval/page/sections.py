"""The order of the page: which sections it has and what each of them says and shows."""

from __future__ import annotations

from collections.abc import Sequence

from sa_eval.page import document_list, drawing, pictures, setup, svg, tables
from sa_eval.page.content import Block, Charts, Folded, Heading, Section, Table, Text, length_name
from sa_eval.page.pictures import Figure
from sa_eval.page.plots import tips
from sa_eval.records.types import Record
from sa_eval.results.types import Length, Results


def sections(results: Results, records: Sequence[Record], documents: list[document_list.Document]) -> list[Section]:
    """Every section that this run has something for."""
    found = [
        _accuracy(results),
        _depths(results, records),
        _speed(results),
        _comparisons(results),
        _documents(documents),
        _seeds(results),
        _published(results),
        _budgets(results),
        setup.failures(results),
        setup.setup(results),
    ]
    return [section for section in found if section is not None]


def _accuracy(results: Results) -> Section | None:
    lengths: list[Length] = list(dict.fromkeys(cell.length for cell in results.cells))
    if not lengths:
        return None
    figures = pictures.accuracy(results)
    blocks: list[Block] = []
    for length in sorted(lengths, key=lambda length: length == "all"):
        blocks.append(Heading(length_name(length).capitalize()))
        here = [figure for figure in figures if figure.length == length]
        for figure in here:
            if figure.name.startswith("accuracy-family"):
                blocks += [*([Text(figure.heading)] if len(here) > 2 else []), shown(figure)]
        blocks.append(tables.accuracy(results, length))
        tasks = [shown(figure) for figure in here if figure.name.startswith("accuracy-task")]
        blocks.append(Folded("Task by task", (*tasks, tables.tasks(results, length))))
    charts = (
        "The charts show a row per arm, all at one budget."
        if pictures.one_window(results)
        else "The charts show accuracy against the measured budget; arms at one budget are set apart a little."
    )
    intro = (
        "Share of right answers in %, with 95 % intervals: Wilson's where every score is right or wrong, bootstrap "
        "over documents otherwise. Differences to full attention are in points, paired by document, with intervals at "
        f"the level of Holm's correction over {results.tests.cells:,} tests; \u25b2 and \u25bc mark those that leave "
        "out 0, which are significant. Won, lost: documents with a better and a worse score than full attention's. "
        f"Detectable: the smallest true difference, in points, that this many documents find with power 0.8. {charts}"
    )
    return Section("accuracy", "Accuracy against measured budget", intro, tuple(blocks))


def _depths(results: Results, records: Sequence[Record]) -> Section | None:
    heatmaps = pictures.depths(results, records)
    if not heatmaps:
        return None
    intro = (
        "Mean accuracy in % by where the asked fact lies in the prompt (0 % is its start) and by the prompt's length, "
        "over all tasks that have such a place and all seeds. One colour scale for all arms."
    )
    charts = shown(pictures.depth_figure(heatmaps))
    table = Folded("The same as a table", (tables.depths(heatmaps),))
    return Section("depth", "Depth of the evidence", intro, (charts, table))


def _speed(results: Results) -> Section:
    title = "Time and memory beside accuracy"
    if not results.speed:
        return Section("speed", title, "Latency, decode speed and memory were not measured in this run.", ())
    figures = pictures.costs(results)
    charts: list[Block] = []
    for figure in figures:
        charts += [Heading(figure.heading), shown(figure)]
    intro = (
        "Prefill of one prompt: median over repeats, with their range. \u00d7 full: times as fast as full attention to "
        "the first token, above 1 is faster. The charts set overall accuracy against each cost; full is the star."
    )
    return Section("speed", title, intro, (*charts, tables.speed(results)))


def _comparisons(results: Results) -> Section | None:
    if not results.comparisons:
        return None
    table = tables.comparisons(results)
    intro = (
        "At the same budget, in points, all lengths together, paired by document. \u25b2 and \u25bc mark what is "
        f"significant at 0.05 after Holm's correction over {results.tests.comparisons:,} tests."
    )
    return Section("pairs", "Variants against each other", intro, (_long(f"{len(table.rows)} pairs", table),))


def _documents(documents: list[document_list.Document]) -> Section | None:
    page = document_list.shown(documents)
    if not page.documents:
        return None
    hidden = page.total - len(page.documents)
    intro = (
        f"Arms have different scores on {page.total:,} documents. "
        + (
            f"{len(page.documents):,} of them are here, wins and losses of every arm and task in turn; the other "
            f"{hidden:,} are not. "
            if hidden
            else "All of them are here. "
        )
        + "The CSV file has all of them with whole answers."
    )
    return Section("documents", "Documents won and lost", intro, (page,))


def _seeds(results: Results) -> Section | None:
    table = tables.seeds(results)
    if not table.rows:
        return None
    intro = (
        "A document's score is its mean over seeds. The interval and the standard deviation over documents tell how "
        "much other documents could change the number, the standard deviation between seeds how much another seed "
        "could. In points."
    )
    return Section("seeds", "Seeds and documents", intro, (_long(f"{len(table.rows)} rows", table),))


def _published(results: Results) -> Section | None:
    if not results.published:
        return None
    intro = "Reference numbers that the settings name, beside what this run measured. Conditions may differ: see there."
    return Section("published", "Published numbers", intro, (tables.published(results),))


def _budgets(results: Results) -> Section | None:
    if not results.budgets:
        return None
    table = tables.budgets(results)
    intro = (
        "Keys per query in prefill, counted over the prompts that were read. Router: work spent on choosing keys, in "
        "scores per query. A dense tail comes on top of the window."
    )
    return Section("budgets", "Budgets: asked and measured", intro, (_long(f"{len(table.rows)} rows", table),))


def _long(summary: str, table: Table) -> Block:
    """A table, folded when it is longer than a screen."""
    return table if len(table.rows) <= 16 else Folded(summary, (table,))


def shown(figure: Figure) -> Charts:
    """A figure as the page shows it: a picture each, under one legend."""
    images = tuple(
        svg.inline(drawing.sheet([item], figure.draw, 1), f"{figure.name}-{position}", item.text, tips(item))
        for position, item in enumerate(figure.items)
    )
    legend = tuple(
        (svg.inline(drawing.mark(label, figure.slots or {}), f"{figure.name}-mark{position}", "", {}), label)
        for position, label in enumerate(figure.labels)
    )
    return Charts(images, legend, level=figure.name != "depth", scale=figure.name == "depth")
