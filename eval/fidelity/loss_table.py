"""What `sa-eval fidelity` prints, from results only: what they say, what they rest on, then a table per length."""

from __future__ import annotations

import textwrap

from sa_eval.fidelity.loss_charts import ordered
from sa_eval.fidelity.loss_headline import LEAST_PASSAGES, number, sentences
from sa_eval.fidelity.types import Cell, Fidelity
from sa_eval.records.types import FULL
from sa_eval.results.result_gates import NEARLY_FULL, Gate, complete, lines
from sa_eval.results.text_tables import aligned

WIDTH = 118
SENTENCES = 4  # the page has all of them
FEW_PASSAGES = 10  # an interval from fewer is too narrow
LEGEND = (
    "KL(full || arm) and cost in nats per token, 95\u00a0% interval over passages in brackets; same top-1: share of "
    "predictions where arm and full prefer the same token. Kept mass: share of full attention's mass on keys the arm "
    "shows. Error: relative error of the attention output fed by the full model, mean of the layers; residual: of the "
    "last layer's residual stream in the patched model. Everything is measured while a text is read (prefill)."
)


def render(results: Fidelity) -> str:
    """Headline, gates that did not pass, one table per length, notes, failures."""
    said = sentences(results)
    blocks = ["\n".join(textwrap.wrap(sentence, WIDTH)) for sentence in said[:SENTENCES]]
    hidden = len(said) - SENTENCES
    blocks += [f"... and {hidden} more budgets and lengths: the report has them"] if hidden > 0 else []
    blocks.append(lines(gates(results), WIDTH))
    blocks += [_block(results, length) for length in results.lengths]
    left_out = [f"left out: {arm.name}: {arm.reason}" for arm in results.left_out]
    remarks = [*results.notes, *left_out, LEGEND]
    blocks.append(
        "\n".join(textwrap.fill(line, WIDTH, initial_indent="  * ", subsequent_indent="    ") for line in remarks)
    )
    return "\n\n".join(block for block in blocks if block)


def gates(results: Fidelity) -> list[Gate]:
    """What the numbers rest on."""
    return [complete(results, failed(results)), _passages(results), _seeds(results), _budgets(results)]


def failed(results: Fidelity) -> list[str]:
    return [
        f"{row.arm}{'' if row.length is None else f' at {row.length:,} tokens'}: {row.error}"
        for row in results.failures
    ]


def _passages(results: Fidelity) -> Gate:
    least = min((cell.passages for cell in results.cells), default=0)
    if least == 1:
        text = "One passage was read: nothing can be said about other texts, so there is no interval."
        return Gate("passages", "warning", text)
    if least < LEAST_PASSAGES:
        text = f"{least} passages are too few to say which arm is closest ({LEAST_PASSAGES} at least): give more text."
        return Gate("passages", "warning", text)
    if least < FEW_PASSAGES:
        text = f"Intervals from {least} passages are too narrow: give more text, or shorter lengths."
        return Gate("passages", "warning", text)
    return Gate("passages", "passed", f"{least:,} passages or more were read at every length.")


def _seeds(results: Fidelity) -> Gate:
    wide = [f"{cell.arm} at {cell.length:,}" for cell in results.cells if _seeds_scatter_more(cell)]
    if wide:
        text = "Another seed moves these more than other passages would: the intervals are too narrow for other seeds."
        return Gate("seeds", "warning", text, wide)
    return Gate("seeds", "passed", "Another seed moves no arm by more than other passages would.")


def _seeds_scatter_more(cell: Cell) -> bool:
    """Whether seeds differ by more than the standard error over passages."""
    spread, edges = cell.seeds.sd["kl"] if cell.seeds else None, cell.intervals.kl
    return spread is not None and edges is not None and spread > (edges[1] - edges[0]) / (2 * 1.96)


def _budgets(results: Fidelity) -> Gate:
    near = [
        f"{cell.arm} at {cell.length:,}"
        for cell in results.cells
        if cell.arm != FULL and cell.budget.density >= NEARLY_FULL
    ]
    if near:
        text = f"These arms read {100 * NEARLY_FULL:.0f}\u00a0% or more of full attention's pairs: hardly a test."
        return Gate("budgets", "warning", text, near)
    return Gate("budgets", "passed", f"Every arm reads less than {100 * NEARLY_FULL:.0f}\u00a0% of full's pairs.")


def _block(results: Fidelity, length: int) -> str:
    cells = ordered(results, length)
    partly = any(cell.overall.predictions < cell.all_predictions.predictions for cell in cells)
    seeds = any(cell.seeds for cell in cells)
    header = ["", "KL", *(["seed sd"] if seeds else []), *(["KL all"] if partly else []), "same top-1", "perplexity"]
    rows = [[*header, "nats/token", "kept mass", "error", "residual", "keys/q"]]
    rows += [_row(cell, seeds, partly) for cell in cells]
    predictions = cells[0].overall.predictions
    title = f"Length {length} tokens: {cells[0].passages} passages, {predictions:,} predictions per arm and seed"
    return f"{title}\n{aligned(rows)}"


def _row(cell: Cell, seeds: bool, partly: bool) -> list[str]:
    overall, intervals = cell.overall, cell.intervals
    row = [cell.arm, number(overall.kl) + _bracket(intervals.kl, "")]
    if seeds:
        row.append(number(cell.seeds.sd["kl"] or 0.0) if cell.seeds else "")
    if partly:
        row.append(number(cell.all_predictions.kl))
    return [
        *row,
        _percent(overall.agreement),
        number(overall.perplexity),
        f"{overall.nats:+.3f}" + _bracket(intervals.nats, "+"),
        _percent(overall.kept_mass),
        _percent(overall.isolated_error),
        _percent(overall.residual_error),
        f"{cell.budget.keys_per_query:.0f}",
    ]


def _bracket(edges: list[float] | None, sign: str) -> str:
    return "" if edges is None else f" [{edges[0]:{sign}.2f}, {edges[1]:{sign}.2f}]"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}\u00a0%"
