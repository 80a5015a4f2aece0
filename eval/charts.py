"""Owns the report's figures: inline SVG strings that take their colours from the page's CSS. No files, no libraries."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 270, 210
LEFT, RIGHT, TOP, BOTTOM = 34, 12, 26, 34
MARKERS = ("square", "circle", "triangle", "diamond", "down", "hexagon", "cross")
# Label -> style slot; the slots' colours (light and dark) are in report.html. Others share the last slot.
SLOTS = {"swa": 0, "sa": 1, "sa-bucket": 2, "sa+swa": 3, "moba": 4, "sa-circular": 5}


@dataclass(frozen=True)
class Point:
    """One arm in one panel; shares between 0 and 1."""

    label: str
    arm: str
    x: float
    y: float
    low: float
    high: float


def slot(label: str) -> int:
    return SLOTS.get(label, len(MARKERS) - 1)


def panel(title: str, points: Sequence[Point], full: Point | None, x_range: tuple[float, float]) -> str:
    """Accuracy against measured keys per query (log), one line per variant, full attention as a dashed level."""
    parts = [_axes(title, x_range)]
    if full is not None:
        y, top, bottom = _y(full.y), _y(full.high), _y(full.low)
        parts.append(
            f'<g class="full"><title>{escape(_tip(full))}</title>'
            f'<rect class="band" x="{LEFT}" y="{top:.1f}" width="{WIDTH - LEFT - RIGHT}" '
            f'height="{max(bottom - top, 1):.1f}"/>'
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/></g>'
        )
    labels = list(dict.fromkeys(point.label for point in points))
    for position, label in enumerate(labels):
        dodge = 3.0 * (position - (len(labels) - 1) / 2)  # matched budgets lie on one x: set the whiskers apart
        parts.append(
            _series(
                sorted((point for point in points if point.label == label), key=lambda point: point.x), x_range, dodge
            )
        )
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}: accuracy against keys per query">'
        + "".join(parts)
        + "</svg>"
    )


def legend_mark(label: str) -> str:
    return f'<svg class="mark s{slot(label)}" viewBox="0 0 14 14" aria-hidden="true">{_marker(label, 7, 7)}</svg>'


def _series(points: Sequence[Point], x_range: tuple[float, float], dodge: float) -> str:
    label = points[0].label
    spots = [(_x(point.x, x_range) + dodge, point) for point in points]
    line = " ".join(f"{x:.1f},{_y(point.y):.1f}" for x, point in spots)
    parts = [f'<g class="s{slot(label)}"><polyline class="trend" points="{line}"/>']
    for x, point in spots:
        parts.append(
            f"<g><title>{escape(_tip(point))}</title>"
            f'<line class="whisker" x1="{x:.1f}" x2="{x:.1f}" y1="{_y(point.high):.1f}" y2="{_y(point.low):.1f}"/>'
            f"{_marker(label, x, _y(point.y))}</g>"
        )
    return "".join(parts) + "</g>"


def _axes(title: str, x_range: tuple[float, float]) -> str:
    parts = [f'<text class="title" x="{LEFT}" y="14">{escape(title)}</text>']
    for share in (0, 0.25, 0.5, 0.75, 1):
        y = _y(share)
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text class="tick" x="{LEFT - 5}" y="{y + 3.5:.1f}" text-anchor="end">{round(100 * share)}</text>'
        )
    for value in _ticks(x_range):
        x = _x(value, x_range)
        parts.append(
            f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{_y(0):.1f}" y2="{_y(0) + 4:.1f}"/>'
            f'<text class="tick" x="{x:.1f}" y="{_y(0) + 15:.1f}" text-anchor="middle">{value:g}</text>'
        )
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text class="tick" x="{middle}" y="{HEIGHT - 4}" text-anchor="middle">keys per query</text>')
    return "".join(parts)


def _ticks(x_range: tuple[float, float]) -> list[int]:
    """Powers of two inside the range, thinned to at most six."""
    low, high = math.ceil(math.log2(x_range[0])), math.floor(math.log2(x_range[1]))
    powers = [2**power for power in range(low, high + 1)]
    return powers[:: math.ceil(len(powers) / 6)] if powers else []


def _x(value: float, x_range: tuple[float, float]) -> float:
    low, high = math.log2(x_range[0]), math.log2(x_range[1])
    return LEFT + 12 + (WIDTH - LEFT - RIGHT - 24) * (math.log2(value) - low) / ((high - low) or 1)


def _y(share: float) -> float:
    return TOP + (HEIGHT - TOP - BOTTOM) * (1 - min(1.0, max(0.0, share)))


def _marker(label: str, x: float, y: float) -> str:
    shape = MARKERS[slot(label)]
    if shape == "circle":
        return f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="4"/>'
    if shape == "square":
        return f'<rect class="dot" x="{x - 3.6:.1f}" y="{y - 3.6:.1f}" width="7.2" height="7.2"/>'
    offsets = {
        "triangle": [(0, -4.8), (4.5, 3.4), (-4.5, 3.4)],
        "down": [(0, 4.8), (4.5, -3.4), (-4.5, -3.4)],
        "diamond": [(0, -5.2), (5.2, 0), (0, 5.2), (-5.2, 0)],
        "hexagon": [(-2.4, -4.2), (2.4, -4.2), (4.8, 0), (2.4, 4.2), (-2.4, 4.2), (-4.8, 0)],
        "cross": [
            (-4, -1.5),
            (-1.5, -1.5),
            (-1.5, -4),
            (1.5, -4),
            (1.5, -1.5),
            (4, -1.5),
            (4, 1.5),
            (1.5, 1.5),
            (1.5, 4),
            (-1.5, 4),
            (-1.5, 1.5),
            (-4, 1.5),
        ],
    }[shape]
    corners = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in offsets)
    return f'<polygon class="dot" points="{corners}"/>'


def _tip(point: Point) -> str:
    return (
        f"{point.arm}: {100 * point.y:.1f} % ({100 * point.low:.1f} to {100 * point.high:.1f}), "
        f"{point.x:.0f} keys per query"
    )
