"""What a calibration says in words and in a terminal's table: the answer first, losses before it."""

from __future__ import annotations

import textwrap

from sa_eval.calibration.types import CalibrationResult, Findings, OutcomeRow, StratumRow
from sa_eval.fidelity.loss_headline import number
from sa_eval.results.result_gates import Gate, complete, lines
from sa_eval.results.text_tables import aligned, columns

FEW_PASSAGES = 6  # an interval from fewer says little
UNFINISHED = "No plan yet: the calibration was stopped; `sa-eval resume DIR` goes on."
LEGEND = (
    "KL(full || arm) of the next-token distribution in nats per scored position, on passages that nothing was decided "
    "with; in brackets the difference to the best single recipe with its 95\u00a0% interval, paired by passage. "
    "Router: what choosing keys costs beside them, in pairs per query."
)
STRATA = {
    "text": "the texts themselves",
    "needle": "the end repeats a snippet from far before; scored is the repetition after its first tokens",
    "aggregation": "a few snippets, some more frequent than others; scored is which one comes next",
}


def answer(result: CalibrationResult) -> list[str]:
    """The losses if there are any, then the answer in one line."""
    if result.found is None:
        return [UNFINISHED]
    found, plan = result.found, result.found.outcome("plan")
    losses = [
        f"On {row.stratum} this plan loses to {found.recipe}: {number(row.divergence)} nats against "
        f"{number(found.outcome(found.recipe).stratum(row.stratum).divergence)} ({_difference(row)})."
        for row in plan.strata
        if (row.difference or 0) > 0
    ]
    return [*losses, found.sentence]


def _difference(row: StratumRow) -> str:
    if row.low is None or row.high is None:
        return "one passage: no interval"
    text = f"difference {signed(row.difference)}, 95\u00a0% {signed(row.low)} to {signed(row.high)}"
    return text if row.low > 0 else f"{text}: may be chance"


def signed(value: float | None) -> str:
    """Three significant digits with a sign."""
    return "" if value is None else f"{value:+.3g}".replace("-", "\u2212")


def gates(result: CalibrationResult) -> list[Gate]:
    """What the answer rests on."""
    if result.found is None:
        return [complete(result, ())]
    return [complete(result, ()), _losses(result.found), _controls(result.found), _passages(result), _budget(result)]


def _losses(found: Findings) -> Gate:
    lost = [row.stratum for row in found.outcome("plan").strata if (row.difference or 0) > 0]
    if lost:
        return Gate("strata", "warning", f"The plan loses to the best single recipe ({found.recipe}) on these:", lost)
    return Gate("strata", "passed", f"The plan loses to the best single recipe ({found.recipe}) on no stratum.")


def _controls(found: Findings) -> Gate:
    plan = found.outcome("plan").stratum("text").divergence
    better = [row.name for row in found.outcomes if row.role == "control" and row.stratum("text").divergence <= plan]
    if better:
        text = (
            "These controls are as close to full on the text as the plan: which layer gets what decides nothing here."
        )
        return Gate("controls", "warning", text, better)
    return Gate("controls", "passed", "The plan is closer to full on the text than every shuffled and random plan.")


def _passages(result: CalibrationResult) -> Gate:
    count = result.settings["passages"][2]
    if count < FEW_PASSAGES:
        return Gate(
            "passages", "warning", f"Intervals from {count} passages say little: {FEW_PASSAGES} at least (--passages)."
        )
    return Gate("passages", "passed", f"Every stratum was reported on {count} passages.")


def _budget(result: CalibrationResult) -> Gate:
    assert result.found is not None
    over = [
        f"{row.name} at {length} tokens"
        for row in result.found.outcomes
        for length, pairs in row.pairs.items()
        if pairs > result.found.allowed[length]
    ]
    if over:
        return Gate("budgets", "warning", "These cost more pairs than the window allows.", over)
    return Gate("budgets", "passed", "No arm costs more pairs than the window allows, at any length.")


def render(result: CalibrationResult, width: int | None = None) -> str:
    """Answer, gates that did not pass, table and notes, for a terminal."""
    width = width or columns()
    blocks = ["\n".join(textwrap.wrap(sentence, width)) for sentence in answer(result)]
    blocks.append(lines(gates(result), width))
    if result.found is not None:
        heads = ["", *result.found.strata, "keys/q", "router"]
        blocks.append(aligned([heads, *(_row(result, row) for row in result.found.outcomes)]))
        blocks.append(layers_told(result.found, width))
    remarks = [*result.notes, *([LEGEND] if result.found else [])]
    blocks.append(
        "\n".join(textwrap.fill(line, width, initial_indent="  * ", subsequent_indent="    ") for line in remarks)
    )
    return "\n\n".join(block for block in blocks if block)


def _row(result: CalibrationResult, row: OutcomeRow) -> list[str]:
    return [row.name, *map(_cell, row.strata), f"{keys_per_query(result, row):.1f}", router(row)]


def _cell(row: StratumRow) -> str:
    if row.difference is None or row.low is None or row.high is None:
        return number(row.divergence)
    return f"{number(row.divergence)} [{row.low:+.3g}, {row.high:+.3g}]"


def keys_per_query(result: CalibrationResult, row: OutcomeRow) -> float:
    """The mean over layers, at the passages' length."""
    assert result.found is not None
    return row.pairs[str(result.length)] / len(result.found.layers) / result.length


def router(row: OutcomeRow) -> str:
    return "" if row.router is None else f"{row.router:.1f}"


def layers_told(found: Findings, width: int) -> str:
    """Which layers got what, a line per recipe."""
    blocks, recipes = [], list(dict.fromkeys(row.recipe for row in found.layers))
    for recipe in recipes:
        rows = [row for row in found.layers if row.recipe == recipe]
        each = ", ".join(str(row.layer) if row.window is None else f"{row.layer} (w {row.window})" for row in rows)
        start = f"  {recipe:<{max(map(len, recipes))}}  layers "
        blocks.append(textwrap.fill(each, width, initial_indent=start, subsequent_indent=" " * len(start)))
    return "\n".join(blocks)


def usage(folder: str) -> str:
    """How the plan is used."""
    return f'in Python   sa_patch.load(model, "{folder}")\nas an arm   sa-eval --plan {folder}'
