"""Owns the terminal table of `sa-eval fidelity`: the largest loss first, from results only."""

from __future__ import annotations

import textwrap
from typing import Any

from sa_eval.results.table import aligned

WIDTH = 118
LEGEND = (
    "KL(full || arm) and cost in nats per token, 95\u00a0% interval over passages in brackets; same top-1: share of "
    "predictions where arm and full prefer the same token. Kept mass: share of full attention's mass on keys the arm "
    "shows. Error: relative error of the attention output fed by the full model, mean of the layers; residual: of the "
    "last layer's residual stream in the patched model. Everything is measured while a text is read (prefill)."
)


def render(results: dict[str, Any]) -> str:
    """One table per length, and notes."""
    lengths = list(dict.fromkeys(cell["length"] for cell in results["cells"]))
    blocks = [_block(results, length) for length in lengths]
    left_out = [f"left out: {arm['name']}: {arm['reason']}" for arm in results["left_out"]]
    lines = [*results["notes"], *left_out, LEGEND]
    blocks.append(
        "\n".join(textwrap.fill(line, WIDTH, initial_indent="  * ", subsequent_indent="    ") for line in lines)
    )
    if results["failures"]:
        failures = (f"  ! {failure['arm']}: {failure['error']}" for failure in results["failures"])
        blocks.append("\n".join(["Failures:", *failures]))
    return "\n\n".join(blocks)


def ordered(results: dict[str, Any], length: int) -> list[dict[str, Any]]:
    """The arms at a length, the largest KL first."""
    cells = [cell for cell in results["cells"] if cell["length"] == length]
    return sorted(cells, key=lambda cell: -cell["overall"]["kl"])


def _block(results: dict[str, Any], length: int) -> str:
    cells = ordered(results, length)
    partly = any(cell["overall"]["predictions"] < cell["all_predictions"]["predictions"] for cell in cells)
    seeds = any(cell["seeds"] for cell in cells)
    header = ["", "KL", *(["seed sd"] if seeds else []), *(["KL all"] if partly else []), "same top-1", "perplexity"]
    rows = [[*header, "nats/token", "kept mass", "error", "residual", "keys/q"]]
    for cell in cells:
        overall, intervals = cell["overall"], cell["intervals"]
        row = [cell["arm"], _number(overall["kl"]) + _bracket(intervals["kl"], "")]
        if seeds:
            row.append(_number(cell["seeds"]["sd"]["kl"]) if cell["seeds"] else "")
        if partly:
            row.append(_number(cell["all_predictions"]["kl"]))
        row += [
            _percent(overall["agreement"]),
            _number(overall["perplexity"]),
            f"{overall['nats']:+.3f}" + _bracket(intervals["nats"], "+"),
            _percent(overall["kept_mass"]),
            _percent(overall["isolated_error"]),
            _percent(overall["residual_error"]),
            f"{cell['budget']['keys_per_query']:.0f}",
        ]
        rows.append(row)
    predictions = cells[0]["overall"]["predictions"]
    title = f"Length {length} tokens: {cells[0]['passages']} passages, {predictions:,} predictions per arm and seed"
    return f"{title}\n{aligned(rows)}"


def _bracket(edges: list[float] | None, sign: str) -> str:
    return "" if edges is None else f" [{edges[0]:{sign}.2f}, {edges[1]:{sign}.2f}]"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}\u00a0%"


def _number(value: float) -> str:
    """Three significant digits; 0 only where it is 0."""
    return "0" if value == 0 else f"{value:.3g}" if abs(value) < 1000 or abs(value) >= 1e7 else f"{value:,.0f}"
