"""How a figure looks: one drawing of each kind of picture, for the page and for the files alike.

Data come in as Panel, Dots and Heatmap, nothing is computed from scores here. Colours are the light theme's; svg.py
turns them into the page's CSS variables. Imports matplotlib's object interface only: no pyplot, no global figure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import ScaledTranslation

from sa_eval.page.plots import BOTTOM, RIGHT, TOP, WIDTH, Dots, Heatmap, Panel, Picture, Point, number
from sa_eval.page.visible import visible
from sa_eval.records.types import FULL
from sa_eval.settings import roles

Look = dict[str, Any]  # keyword arguments of matplotlib's plot
INK, SOFT, LINE, CARD, HEAT = "#1c1d1f", "#5d6066", "#e2e3e1", "#ffffff", "#2e6fc7"
# A declared mode keeps its colour and mark in every run; any other label takes the next free one.
COLOURS = (
    *("#2a6fc8", "#d1490c", "#8a3fb0", "#12835a", "#6b7178"),
    *("#a87400", "#0b7f8c", "#c2307e", "#4b52c9", "#7a6a58"),
)
MARKS = ("s", "o", "D", "v", "X", "^", "h", "P", "p", "d")
HEAT_LEAST, HEAT_MOST = 0.04, 0.50  # opacity at 0 and at 100 %: ink stays readable on all of it, in both themes
HEAD, MARK = 0.62, 0.15  # inches: of a heading, of a legend's mark
STYLE = {
    "font.size": 8.0,
    "text.parse_math": False,  # names come from outside: a dollar sign is a dollar sign
    "svg.fonttype": "none",
    "svg.hashsalt": "sa-eval",
}


def looks(labels: Iterable[str]) -> dict[str, int]:
    """Label -> its colour and mark, the same for known labels in every run."""
    known = roles.in_order()
    others = [label for label in dict.fromkeys(labels) if label not in known and label != FULL]
    return {label: slot for slot, label in enumerate([*known, *others])}


def sheet(
    items: Sequence[Picture],
    draw: Callable[[Axes, Any], None],
    columns: int,
    heading: str = "",
    legend: Sequence[Line2D] = (),
) -> Figure:
    """A figure of equal cells, drawn one by one; with a heading (and a legend) when it has to stand alone."""
    with matplotlib.rc_context(cast(Any, STYLE)):
        return _sheet(items, draw, min(columns, len(items)), heading, legend)


def _sheet(
    items: Sequence[Picture], draw: Callable[[Axes, Any], None], columns: int, heading: str, legend: Sequence[Line2D]
) -> Figure:
    rows, cell = math.ceil(len(items) / columns), max(item.height for item in items)
    width, height = columns * WIDTH, rows * cell + (HEAD if heading else 0)
    figure = Figure((width, height), facecolor="none" if not heading else CARD)
    for position, item in enumerate(items):
        row, column = divmod(position, columns)
        left, top = column * WIDTH + item.left, (rows - row) * cell - TOP
        size = WIDTH - item.left - RIGHT, item.height - TOP - BOTTOM
        box = (left / width, (top - size[1]) / height, size[0] / width, size[1] / height)
        axes = figure.add_axes(box, facecolor="none")
        _bare(axes)
        draw(axes, item)
    if heading:
        figure.text(0.12 / width, 1 - 0.2 / height, visible(heading), size=10, weight="bold", color=INK, va="center")
    if legend:
        anchor = (0.05 / width, 1 - 0.44 / height)
        figure.legend(
            handles=list(legend),
            frameon=False,
            borderpad=0,
            labelcolor=SOFT,
            loc="center left",
            bbox_to_anchor=anchor,
            ncols=len(legend),
        )
    return figure


def draw_panel(axes: Axes, panel: Panel, slots: Mapping[str, int]) -> None:
    """Whiskers of arms at one budget would cover each other: each label is moved a little to the side."""
    axes.set_title(visible(panel.title), loc="left", size=9, weight="bold", color=INK, pad=7, y=1.0)
    ticks = _ticks(*panel.x_range, panel.matched)
    axes.set(xscale="log", xlim=panel.x_range, ylim=(-0.03, 1.03))
    axes.set_xticks(ticks, [number(tick) for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100"])
    axes.set_xlabel(panel.x_name, color=SOFT, labelpad=3)
    axes.grid(axis="y", color=LINE, linewidth=0.8)
    if panel.full is not None:
        axes.axhspan(panel.full.low, panel.full.high, color=SOFT, alpha=0.13, linewidth=0)
        axes.axhline(panel.full.y, color=SOFT, linewidth=1.1, dashes=(4, 3), gid="tip-full")
    labels = list(dict.fromkeys(point.label for point in panel.points))
    for position, label in enumerate(labels):
        dodge = 2.6 * (position - (len(labels) - 1) / 2) / 72 if panel.matched else 0.0
        series = [(index, point) for index, point in enumerate(panel.points) if point.label == label]
        _series(axes, sorted(series, key=lambda entry: entry[1].x or 0.0), dodge, look(label, slots))


def draw_dots(axes: Axes, dots: Dots, slots: Mapping[str, int]) -> None:
    """Arms from top to bottom in the order of the tables."""
    axes.set_title(visible(dots.title), loc="left", size=9, weight="bold", color=INK, pad=7, y=1.0, x=-_share(dots))
    axes.set(xlim=(-0.02, 1.02), ylim=(len(dots.points) - 0.3, -0.7))
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100"])
    axes.set_yticks(range(len(dots.points)), [visible(point.label) for point in dots.points])
    axes.set_xlabel("accuracy, %", color=SOFT, labelpad=3)
    axes.grid(axis="x", color=LINE, linewidth=0.8)
    if dots.full is not None:
        axes.axvspan(dots.full.low, dots.full.high, color=SOFT, alpha=0.13, linewidth=0)
        axes.axvline(dots.full.y, color=SOFT, linewidth=1.1, dashes=(4, 3), gid="tip-full")
    for row, point in enumerate(dots.points):
        style = look(point.label, slots)
        axes.plot([point.low, point.high], [row, row], color=style["color"], linewidth=1.4, alpha=0.6, clip_on=False)
        axes.plot([point.y], [row], clip_on=False, gid=f"tip-{row}", **style)


def _share(dots: Dots) -> float:
    """Where the picture's left edge is, in widths of its axes."""
    return (dots.left - 0.12) / (WIDTH - dots.left - RIGHT)


def draw_heatmap(axes: Axes, heatmap: Heatmap) -> None:
    axes.set_title(visible(heatmap.title), loc="left", size=9, weight="bold", color=INK, pad=7, y=1.0)
    axes.set(xlim=(0, len(heatmap.columns)), ylim=(len(heatmap.rows), 0))
    axes.set_xticks([column + 0.5 for column in range(len(heatmap.columns))], heatmap.columns)
    axes.set_yticks([row + 0.5 for row in range(len(heatmap.rows))], heatmap.rows)
    axes.set_xlabel("tokens", color=SOFT, labelpad=3)
    for row, shares in enumerate(heatmap.shares):
        for column, share in enumerate(shares):
            opacity = 0.0 if share is None else heat_opacity(share)
            square = Rectangle((column + 0.02, row + 0.03), 0.96, 0.94, color=HEAT, alpha=opacity, linewidth=0)
            axes.add_patch(square)
            text = "\u2013" if share is None else f"{100 * share:.0f}"
            axes.text(column + 0.5, row + 0.52, text, ha="center", va="center", color=INK)


def heat_opacity(share: float) -> float:
    return HEAT_LEAST + (HEAT_MOST - HEAT_LEAST) * share


def mark(label: str, slots: Mapping[str, int]) -> Figure:
    """The mark of one label alone, for the page's legend."""
    figure = Figure((MARK, MARK), facecolor="none")
    handle = Line2D([0.5], [0.5], linestyle="none", transform=figure.transFigure, **look(label, slots))
    figure.add_artist(handle)
    return figure


def legend(labels: Iterable[str], slots: Mapping[str, int]) -> list[Line2D]:
    """Handles for a figure that stands alone; the last one explains the dashed level."""
    handles = [Line2D([], [], linestyle="none", label=visible(label), **look(label, slots)) for label in labels]
    level = Line2D([], [], color=SOFT, linewidth=1.1, dashes=(4, 3), label="full attention and its interval")
    return [*handles, level]


def look(label: str, slots: Mapping[str, int]) -> Look:
    if label == FULL:
        return {"color": INK, "marker": "*", "markersize": 8.5, "markeredgecolor": CARD, "markeredgewidth": 0.5}
    turn, colour = divmod(slots[label], len(COLOURS))
    shape = MARKS[(colour + turn) % len(MARKS)]  # the eleventh label has the first colour and another mark
    return {
        "color": COLOURS[colour],
        "marker": shape,
        "markersize": 5.6,
        "markeredgecolor": CARD,
        "markeredgewidth": 0.7,
    }


def _series(axes: Axes, series: list[tuple[int, Point]], dodge: float, style: Look) -> None:
    """One label's points with their whiskers, joined; moved `dodge` inches to the right."""
    moved = axes.transData + ScaledTranslation(dodge, 0, axes.figure.dpi_scale_trans)
    colour = style["color"]
    if len(series) > 1:
        axes.plot(
            [cast(float, point.x) for _, point in series],
            [point.y for _, point in series],
            color=colour,
            linewidth=1.1,
            alpha=0.7,
            transform=moved,
        )
    for index, point in series:
        axes.plot(
            [cast(float, point.x)] * 2,
            [point.low, point.high],
            color=colour,
            linewidth=1.1,
            alpha=0.6,
            transform=moved,
            clip_on=False,
        )
        axes.plot([cast(float, point.x)], [point.y], transform=moved, clip_on=False, gid=f"tip-{index}", **style)


def _bare(axes: Axes) -> None:
    for side in axes.spines.values():
        side.set_visible(False)
    axes.tick_params(length=0, labelcolor=SOFT, labelsize=8, pad=4)
    axes.set_axisbelow(True)


def _ticks(low: float, high: float, matched: bool) -> list[float]:
    """At most five round numbers inside the range."""
    if matched:
        found = [2.0**power for power in range(math.ceil(math.log2(low)), math.floor(math.log2(high)) + 1)]
    else:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        found = [step * 10.0**decade for decade in decades for step in (1, 2, 5)]
    found = [tick for tick in found if low <= tick <= high]
    if len(found) < 2:
        found = [float(tick) for tick in MaxNLocator(4).tick_values(low, high) if low <= tick <= high]
    return found[:: math.ceil(len(found) / 5)] if found else []
