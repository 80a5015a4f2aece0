"""The page of a fidelity result: how far every arm is from full, where it is lost, and what was read."""

from __future__ import annotations

from sa_eval.fidelity import loss_charts, sums
from sa_eval.fidelity.loss_headline import number, sentences
from sa_eval.fidelity.loss_table import LEGEND, gates
from sa_eval.fidelity.types import Cell, Fidelity
from sa_eval.page import result_page
from sa_eval.page.content import (
    Column,
    Field,
    Folded,
    Heading,
    Section,
    Table,
    amount,
    columns,
    extra,
    rows_of,
    text,
    words,
)
from sa_eval.page.result_plots import Picture
from sa_eval.records.directory import RunDirectory
from sa_eval.records.types import FULL

MOST_PASSAGES = 200  # in the table of passages


def write(directory: RunDirectory, results: Fidelity) -> None:
    """fidelity.csv, report.html and figures/."""
    directory.write_text("fidelity.csv", sums.to_csv(results))
    pictures = loss_charts.pictures(results) if results.cells else {}
    sections = [*(_measured(results, pictures) if pictures else []), _texts(results), _setup(results)]
    page = result_page.Page(
        question=f"How far is sparse attention from full attention in {results.model['name']}?",
        answer=sentences(results),
        gates=gates(results),
        notes=results.notes,
        facts={**result_page.about(results), "Texts": f"{len({row.sha256 for row in results.texts}):,}"},
        sections=sections,
        pictures=tuple(pictures.values()),
    )
    result_page.write(directory, page)


def _measured(results: Fidelity, pictures: dict[str, Picture]) -> list[Section]:
    tables = [part for length in results.lengths for part in (Heading(f"{length:,} tokens"), _losses(results, length))]
    passages = Folded("Passage by passage", tuple(_passages(results, length) for length in results.lengths))
    intro = (
        "KL(full || arm) of the next-token distribution, the largest loss first, with 95 % intervals over passages. "
        "An arm is called the closest only where its paired differences to all others exclude 0 together. "
    )
    return [
        Section("losses", "How far from full", intro + LEGEND, (pictures["losses"].charts(), *tables, passages)),
        Section(
            "where",
            "Where it is lost",
            "By the tokens read before a prediction (all predictions), and by how far back the next token could be "
            "copied from: the last earlier occurrence of the same two tokens (scored predictions).",
            (pictures["kl_by_position"].charts(), pictures["kl_by_copy_distance"].charts()),
        ),
        Section(
            "mass",
            "Attention mass that is kept",
            "Lines: % of full attention's mass at a distance that an arm's keys hold. Bars: % of all mass there. The "
            f"first {results.sink_tokens} tokens of a text are apart: trained models park attention on them.",
            (pictures["kept_mass_by_distance"].charts(),),
        ),
        Section(
            "layers",
            "Layer by layer",
            f"Measured at up to {results.probed_places} positions of a passage, the same for every arm.",
            (pictures["layers"].charts(),),
        ),
    ]


def _losses(results: Fidelity, length: int) -> Table:
    cells = loss_charts.ordered(results, length)
    names = ("cost, nats per token", "perplexity", "kept mass, %", "error, %", "residual, %", "keys per query")
    names += ("KL, all predictions", "SD between seeds")
    rows = rows_of([_numbers(cell) for cell in cells])
    caption = f"{cells[0].passages:,} passages, {cells[0].overall.predictions:,} scored predictions per arm and seed"
    return Table(caption, columns("arm", "KL, nats", "same top-1, %", *map(extra, names)), rows)


def _numbers(cell: Cell) -> list[Field]:
    overall, edges, budget = cell.overall, cell.intervals, cell.budget
    spread = cell.seeds.sd["kl"] if cell.seeds else None
    return [
        words(cell.arm),
        Field(number(overall.kl), _span(edges.kl), overall.kl),
        _percent(overall.agreement),
        Field(f"{overall.nats:+.3f}".replace("-", "\u2212"), _span(edges.nats), overall.nats),
        Field(number(overall.perplexity), value=overall.perplexity),
        _percent(overall.kept_mass),
        _percent(overall.isolated_error),
        _percent(overall.residual_error),
        amount(budget.keys_per_query, ",.1f", f"density {budget.density:.2f}"),
        Field(number(cell.all_predictions.kl), value=cell.all_predictions.kl),
        Field("") if spread is None else Field(number(spread), value=spread),
    ]


def _passages(results: Fidelity, length: int) -> Table:
    """KL of every arm on every passage."""
    cells = [cell for cell in results.at(length) if cell.arm != FULL] or results.at(length)
    rows = [
        [words(f"{passage.text} {passage.index + 1}"), amount(passage.tokens, ","), *map(_kl, position)]
        for passage, position in zip(
            cells[0].by_passage, zip(*(cell.by_passage for cell in cells), strict=True), strict=True
        )
    ][:MOST_PASSAGES]
    hidden = len(cells[0].by_passage) - len(rows)
    more = f"; {hidden:,} more are in fidelity.json" if hidden else ""
    caption = f"KL in nats by passage of {length:,} tokens{more}"
    return Table(caption, columns("passage", "tokens", *(cell.arm for cell in cells)), rows_of(rows))


def _kl(passage: object) -> Field:
    value = getattr(passage, "kl", None)
    return Field("") if value is None else Field(number(value), value=value)


def _texts(results: Fidelity) -> Section:
    rows = []
    for row in results.texts:
        counts = (row.length, row.passages, row.tokens_used, row.tokens_left)
        rows.append([words(row.name), *(amount(count, ",") for count in counts), words(row.sha256[:16])])
    heads = columns("text", "length", "passages", extra("tokens read"), extra("tokens left out"))
    heads += (Column("SHA-256 begins", text=True, extra=True),)
    intro = "What was read at each length; nothing is cut off silently."
    return Section("texts", "Texts", intro, (Table("Texts", heads, rows_of(rows)),))


def _setup(results: Fidelity) -> Section:
    measures = result_page.facts("What the words mean", results.measures)
    left_out = [[words(arm.name), words(arm.reason or "")] for arm in results.left_out]
    caption = "Combinations of the settings that are no arm, and why"
    tables = [Table(caption, columns("arm", text("reason")), rows_of(left_out))] if left_out else []
    return result_page.setup(results, "sa-eval fidelity", (measures, *tables))


def _percent(value: float | None) -> Field:
    return Field("") if value is None else Field(f"{100 * value:.1f}", value=value)


def _span(edges: list[float] | None) -> str:
    return "" if edges is None else f"{number(edges[0])} to {number(edges[1])}".replace("-", "\u2212")
