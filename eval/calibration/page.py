"""The page of a calibration: the answer, arms by stratum, which layer got what, and how to use the plan."""

from __future__ import annotations

from sa_eval.calibration import words as said
from sa_eval.calibration.types import CalibrationResult, Findings, LayerRow, OutcomeRow, StratumRow
from sa_eval.fidelity.loss_headline import number
from sa_eval.page import result_page
from sa_eval.page.content import (
    Column,
    Field,
    Folded,
    Pre,
    Section,
    Table,
    amount,
    columns,
    extra,
    rows_of,
    words,
)
from sa_eval.page.drawing import looks
from sa_eval.page.result_panels import Bar, Bars, Dots, Row, Style
from sa_eval.page.result_plots import Picture
from sa_eval.records.directory import RunDirectory


def write(directory: RunDirectory, result: CalibrationResult) -> None:
    """report.html and figures/."""
    found = result.found
    pictures = (outcomes_picture(result, found), layers_picture(result, found)) if found else ()
    facts = {**result_page.about(result), "Texts": f"{len(result.texts):,}"}
    page = result_page.Page(
        question=_question(result),
        answer=said.answer(result),
        gates=said.gates(result),
        notes=result.notes,
        facts={**facts, "Measuring took": f"{found.seconds:,.0f} s"} if found else facts,
        sections=[*(_found(directory, result, found, pictures) if found else []), _texts(result), _setup(result)],
        pictures=pictures,
    )
    result_page.write(directory, page)


def _question(result: CalibrationResult) -> str:
    name, window, target = result.model["name"], result.settings["window"], result.settings.get("target_kl")
    if target is None:
        return f"Which layers of {name} need which keys, at {window} per query?"
    return f"Which layers of {name} need which keys, to stay within {target:g} nats of full attention?"


def _found(
    directory: RunDirectory, result: CalibrationResult, found: Findings, pictures: tuple[Picture, ...]
) -> list[Section]:
    strata = ". ".join(f"{name.capitalize()}: {said.STRATA.get(name, '')}" for name in found.strata)
    use = (
        "sa_patch.json in this folder is the plan, and all that is needed to use it. "
        f"{found.swaps_kept} of {found.swaps_tried} changes that were tried on the passages to choose with were kept."
    )
    each = Folded("Passage by passage", tuple(_by_passage(found, name) for name in found.strata))
    return [
        Section("use", "Use the plan", use, (Pre("Commands", said.usage(str(directory.path))),)),
        Section(
            "outcomes",
            "What it costs",
            f"{said.LEGEND} {strata}.",
            (pictures[0].charts(), _outcomes(result, found), each),
        ),
        Section(
            "layers",
            "Which layer got what",
            f"Keys per query at {result.length:,} tokens, router included where it is charged; the dashed line is the "
            "mean that was allowed. Colour and mark: the recipe.",
            (pictures[1].charts(), _layers(found)),
        ),
    ]


def outcomes_picture(result: CalibrationResult, found: Findings) -> Picture:
    """KL of every arm by stratum."""
    panels = []
    for name in found.strata:
        rows = [
            Row(row.name, _style(row), row.stratum(name).divergence, *_range(row.stratum(name)))
            for row in found.outcomes
        ]
        panels.append(Dots(name, "KL, nats; line: from passage to passage", tuple(rows)))
    slots = _slots(found)
    return Picture("outcomes", f"How far from full attention: {result.model['name']}", tuple(panels), slots)


def _slots(found: Findings) -> dict[str, int]:
    """Colours and marks, the same in both pictures."""
    return looks([*(_style(row).label for row in found.outcomes), *(row.recipe for row in found.layers)])


def _style(row: OutcomeRow) -> Style:
    """Recipes look as they do among the layers; controls look alike."""
    return Style(row.name if row.role == "recipe" else row.role)


def _range(row: StratumRow) -> tuple[float, float]:
    return min(row.of_passages), max(row.of_passages)


def layers_picture(result: CalibrationResult, found: Findings) -> Picture:
    """The recipe of every layer by colour and mark, its keys per query by height."""
    bars = tuple(Bar(Style(row.recipe), row.keys_per_query, _bar_text(row)) for row in found.layers)
    level = found.allowed[str(result.length)] / len(found.layers) / result.length
    panel = Bars(f"The plan at {result.length:,} tokens", "layer", "keys per query", bars, level)
    slots = _slots(found)
    return Picture("layers", f"Which layer got what: {result.model['name']}", (panel,), slots)


def _bar_text(row: LayerRow) -> str:
    window = "all keys" if row.window is None else f"window {row.window}"
    return f"layer {row.layer}: {row.recipe}, {window}, {row.keys_per_query:,.0f} keys per query"


def _outcomes(result: CalibrationResult, found: Findings) -> Table:
    heads = columns("arm", *(f"{name}: KL" for name in found.strata))
    heads += columns(
        *(extra(f"{name}: minus {found.recipe}") for name in found.strata),
        extra("keys per query"),
        extra("router: pairs per query"),
    )
    rows = []
    for row in found.outcomes:
        values = [Field(number(one.divergence), value=one.divergence) for one in row.strata]
        differences = [_difference(one) for one in row.strata]
        rows.append(
            [
                words(row.name, row.role if row.role == "control" else ""),
                *values,
                *differences,
                amount(said.keys_per_query(result, row), ",.1f"),
                Field("") if row.router is None else amount(row.router, ",.1f"),
            ]
        )
    count = len(found.outcomes[0].strata[0].of_passages)
    caption = (
        f"KL in nats, {count} passages per stratum; differences with 95\u00a0% intervals, negative is closer to full"
    )
    return Table(caption, heads, rows_of(rows))


def _difference(row: StratumRow) -> Field:
    if row.difference is None:
        return Field("the best recipe", value=0.0)
    if row.low is None or row.high is None:
        return Field(said.signed(row.difference), "one passage", row.difference)
    style = "better" if row.high < 0 else "worse" if row.low > 0 else ""
    return Field(
        said.signed(row.difference), f"{said.signed(row.low)} to {said.signed(row.high)}", row.difference, style
    )


def _by_passage(found: Findings, stratum: str) -> Table:
    columns_of = [row.stratum(stratum).of_passages for row in found.outcomes]
    rows = [
        [words(f"{stratum} {number_ + 1}"), *(Field(number(value), value=value) for value in values)]
        for number_, values in enumerate(zip(*columns_of, strict=True))
    ]
    return Table(
        f"KL in nats by passage: {stratum}", columns("passage", *(row.name for row in found.outcomes)), rows_of(rows)
    )


def _layers(found: Findings) -> Table:
    rows = []
    for row in found.layers:
        options = ", ".join(f"{name}={value}" for name, value in row.options.items())
        window = Field("all keys") if row.window is None else amount(row.window, "")
        rows.append(
            [amount(row.layer, ""), words(row.recipe), window, amount(row.keys_per_query, ",.1f"), words(options)]
        )
    heads = columns("layer", Column("recipe", text=True), "window", extra("keys per query"))
    return Table("The plan, layer by layer", (*heads, Column("options", text=True, extra=True)), rows_of(rows))


def _texts(result: CalibrationResult) -> Section:
    rows = [[words(row.name), amount(row.tokens, ","), words(row.sha256[:16])] for row in result.texts]
    heads = (*columns("text", "tokens"), Column("SHA-256 begins", text=True, extra=True))
    fit, choose, report = result.settings["passages"]
    intro = (
        f"Passages of {result.length:,} tokens: of every stratum {fit} to fit, {choose} to choose and {report} to "
        "report with. No token is in two of the three, and those of the report are read after the plan is final."
    )
    return Section("texts", "Texts", intro, (Table("Texts", heads, rows_of(rows)),))


def _setup(result: CalibrationResult) -> Section:
    return result_page.setup(result, "sa-eval calibrate")
