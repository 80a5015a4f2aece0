"""What `sa-eval coverage` prints, from the result only. No torch."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from sa_eval.coverage.types import CoverageResult, CoverageRow, Curve
from sa_eval.results.text_tables import aligned, columns

DEPTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
SHARES = (0.5, 0.9, 0.99)
DASH = "\u2013"
NOTES = (
    "connected: share of (query, earlier token) pairs, in %, whose token's content can have reached the query after so "
    "many layers; ± is half of a 95 % interval over seeds. theory: the closed form (docs/coverage.md). 50/90/99 %: "
    "layers after which so many pairs are connected. all: seeds in which every pair is.",
    "both: every layer as an undirected graph, the case of the paper's theory; a decoder does what causal says. "
    "log: log(n) / log(2w - 1), fewer layers connect no query to everything.",
    "local: how many of its last tokens a query sees in a layer; previous: how many queries see their previous token, "
    "in one layer, and in none of the stack (never).",
    "graph: all layers together, undirected. C: clustering, L: path length in hops, beside a random graph's and a "
    "ring's of the same degree; index: (C / C random) / (L / L random), a small world where it is well above 1.",
    "mixing: gap of one layer's and of the averaged operator; layers until mass is spread evenly (causal: as full "
    "attention spreads it) to a total variation distance of 0.25.",
)


def render(result: CoverageResult) -> str:
    """Tables for a terminal: coverage, local coherence, graphs, mixing, what failed, and what the words mean."""
    width = columns()
    blocks = [_coverage(result.rows), _coherence(result.rows), _worlds(result), _mixing(result.rows)]
    if result.failures:
        blocks.append("\n".join(f"failed: {one.arm} at {one.length:,}: {one.error}" for one in result.failures))
    if result.interrupted and not result.finished:
        blocks.append("  ! interrupted: `sa-eval resume` does what is missing")
    blocks.append("\n".join(textwrap.fill(f"* {note}", width, subsequent_indent="  ") for note in NOTES))
    return "\n\n".join(block for block in blocks if block)


def _coverage(rows: Sequence[CoverageRow]) -> str:
    if not rows:
        return ""
    deepest = max(row.layers for row in rows)
    depths = [depth for depth in DEPTHS if depth <= deepest]
    depths += [deepest] if deepest not in depths else []
    head = ["connected, %", "tokens", "", "log", *(str(depth) for depth in depths)]
    lines = [[*head, *(f"{share:.0%}".replace("%", " %") for share in SHARES), "all"]]
    for row in rows:
        for curve in row.curves:
            way = "causal" if curve.causal else "both"
            log = DASH if row.log_depth is None else f"{row.log_depth:.1f}"
            measured = [_measured(curve, depth) for depth in depths]
            needed = [_needed(curve.covered, share) for share in SHARES]
            lines.append([row.arm, f"{row.length:,}", way, log, *measured, *needed, _everything(curve)])
            if curve.expected is not None:
                expected = [_percent(curve.expected, depth) for depth in depths]
                layers = [_needed(curve.expected, share) for share in SHARES]
                lines.append(["  theory", "", "", "", *expected, *layers, ""])
    return aligned(lines)


def _measured(curve: Curve, depth: int) -> str:
    text = _percent(curve.covered, depth)
    if text == DASH:
        return text
    low, high = curve.intervals[depth - 1]
    return text if low is None or high is None or high - low < 1e-9 else f"{text}±{50 * (high - low):.2f}"


def _percent(shares: Sequence[float], depth: int) -> str:
    return DASH if depth > len(shares) else f"{100 * shares[depth - 1]:.2f}"


def _needed(shares: Sequence[float], share: float) -> str:
    return next((str(layer + 1) for layer, found in enumerate(shares) if found >= share), f">{len(shares)}")


def _everything(curve: Curve) -> str:
    bound = "" if curve.exact or not curve.everything[-1] else "<="
    return f"{bound}{100 * curve.everything[-1]:.0f} %"


def _coherence(rows: Sequence[CoverageRow]) -> str:
    lines = [["local, %", "tokens", "of the last", "seen", "previous", "never"]]
    for row in rows:
        found = row.coherence
        never = 100 * (1 - found.previous_within[-1])
        seen, previous = f"{100 * found.share:.1f}", f"{100 * found.previous:.1f}"
        lines.append([row.arm, f"{row.length:,}", str(found.last), seen, previous, f"{never:.1f}"])
    return aligned(lines) if rows else ""


def _worlds(result: CoverageResult) -> str:
    if not result.rows:
        return ""
    head = ["graph", "tokens", "degree", "density", "C", "random", "ring", "L", "random", "ring", "index"]
    lines = [head]
    for row in result.rows:
        found = row.world
        clustering = [f"{one:.3f}" for one in (found.clustering, found.random_clustering, found.ring_clustering)]
        paths = list(map(_number, (found.path_length, found.random_path_length, found.ring_path_length)))
        density = f"{100 * found.density:.3g} %"
        lines.append([row.arm, f"{row.length:,}", f"{found.degree:,.0f}", density, *clustering, *paths])
        lines[-1].append(_number(found.index))
    fly = f"{100 * result.fly['density']:.2g} %"
    lines.append(["fly (quoted)", "", "", fly, DASH, DASH, DASH, f"{result.fly['hops']}", DASH, DASH, DASH])
    return aligned(lines)


def _mixing(rows: Sequence[CoverageRow]) -> str:
    lines = [["mixing", "tokens", "", "gap, one layer", "gap, averaged", "layers to mix"]]
    for row in rows:
        for found in row.mixing:
            way = "causal" if found.causal else "both"
            gaps = [f"{found.layer_gap:.4f}", f"{found.averaged_gap:.4f}"]
            time = f">{row.layers}" if found.mixing_time is None else str(found.mixing_time)
            lines.append([row.arm, f"{row.length:,}", way, *gaps, time])
    return aligned(lines) if len(lines) > 1 else ""


def _number(value: float | None) -> str:
    return DASH if value is None else f"{value:.2f}" if value < 100 else f"{value:,.0f}"
