"""Lines over a quantity, values with their intervals in rows, and bars: for pages of results that are no run.

Colours and marks are those of drawing.py: one per label. Arms of one label differ in the line's pattern.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from sa_eval.page import drawing, svg
from sa_eval.page.content import Charts
from sa_eval.page.drawing import CARD, INK, LINE, SOFT
from sa_eval.page.result_panels import BOTTOM, RIGHT, TOP, Bars, Dots, Lines, Panel, Row, Series, Style
from sa_eval.page.visible import visible

WIDTH = 3.6  # inches of a panel with what is around it
COLUMNS = 4
PATTERNS = ("-", (0, (5, 1.5)), (0, (1, 1.2)), (0, (6, 1.5, 1, 1.5)), (0, (3, 1, 1, 1, 1, 1)))
FLOOR = "none"  # no arm: the model without attention


@dataclass(frozen=True)
class Picture:
    """Panels of one kind with one legend; `name` is the file's."""

    name: str
    heading: str
    panels: tuple[Panel, ...]
    slots: dict[str, int]

    def charts(self) -> Charts:
        """For a page."""
        images = tuple(
            svg.inline(sheet([panel], self.slots), f"{self.name}-{number}", panel.text, _tips(panel))
            for number, panel in enumerate(self.panels)
        )
        return Charts(images, tuple(self._legend()))

    def _legend(self) -> list[tuple[Markup, str]]:
        """Rows of dots say their names themselves."""
        found = [
            (svg.inline(_mark(style, self.slots), f"{self.name}-mark{number}", "", {}), name)
            for number, (name, style) in enumerate(self._styles().items())
        ]
        return found if self._needs_legend() else []

    def _needs_legend(self) -> bool:
        return any(not isinstance(panel, Dots) for panel in self.panels)

    def _styles(self) -> dict[str, Style]:
        return {name: style for panel in self.panels for name, style in _named(panel)}

    def alone(self) -> Figure:
        """For a file: with its heading and its legend."""
        handles = [
            Line2D([], [], label=visible(name), **look(style, self.slots)) for name, style in self._styles().items()
        ]
        return sheet(self.panels, self.slots, self.heading, handles if self._needs_legend() else ())


def look(style: Style, slots: dict[str, int]) -> drawing.Look:
    """What matplotlib draws a line with."""
    if style.label == FLOOR:
        return {"color": SOFT, "linestyle": (0, (2, 2)), "linewidth": 1.2, "marker": ""}
    pattern = PATTERNS[style.pattern % len(PATTERNS)]
    return {**drawing.look(style.label, slots), "linestyle": pattern, "linewidth": 1.2, "markersize": 4.6}


def sheet(panels: Sequence[Panel], slots: dict[str, int], heading: str = "", handles: Sequence[Line2D] = ()) -> Figure:
    """Panels beside each other in rows; with a heading and a legend when they stand alone."""
    columns = min(COLUMNS, len(panels))
    rows = [panels[start : start + columns] for start in range(0, len(panels), columns)]
    heights = [max(panel.height for panel in row) for row in rows]
    legend_rows = -(-len(handles) // (2 * columns))
    head = 0.4 + 0.2 * legend_rows if heading else 0.0
    width, height = columns * WIDTH, sum(heights) + head
    with matplotlib.rc_context(cast(Any, drawing.STYLE)):
        figure = Figure((width, height), facecolor=CARD if heading else "none")
        top = height - head
        for row, row_height in zip(rows, heights, strict=True):
            for column, panel in enumerate(row):
                left, bottom = column * WIDTH + panel.left, top - panel.height + BOTTOM
                size = WIDTH - panel.left - RIGHT, panel.height - TOP - BOTTOM
                box = (left / width, bottom / height, size[0] / width, size[1] / height)
                _draw(figure.add_axes(box, facecolor="none"), panel, slots)
            top -= row_height
        if heading:
            figure.text(
                0.12 / width, 1 - 0.2 / height, visible(heading), size=10, weight="bold", color=INK, va="center"
            )
        if handles:
            at = {"loc": "upper left", "bbox_to_anchor": (0.05 / width, 1 - 0.32 / height), "ncols": 2 * columns}
            figure.legend(handles=list(handles), frameon=False, borderpad=0, labelcolor=SOFT, fontsize=7, **at)
    return figure


def _draw(axes: Axes, panel: Panel, slots: dict[str, int]) -> None:
    for side in axes.spines.values():
        side.set_visible(False)
    axes.tick_params(length=0, labelcolor=SOFT, labelsize=7.5, pad=3)
    axes.set_axisbelow(True)
    axes.set_title(visible(panel.title), loc="left", size=9, weight="bold", color=INK, pad=7)
    axes.set_xlabel(visible(panel.x_name), color=SOFT, labelpad=3)
    if isinstance(panel, Lines):
        _draw_lines(axes, panel, slots)
    elif isinstance(panel, Bars):
        _draw_bars(axes, panel, slots)
    else:
        _draw_dots(axes, panel, slots)


def _draw_lines(axes: Axes, panel: Lines, slots: dict[str, int]) -> None:
    for x, height in panel.bars:
        axes.bar([x], [height], width=0.8, color=LINE, zorder=0)
    for number, one in enumerate(panel.series):
        drawn = look(one.style, slots)
        gap = float("nan")
        xs, ys = [gap if x is None else x for x, *_ in one.points], [y for _, y, *_ in one.points]
        axes.plot(xs, ys, gid=f"tip-{number}", zorder=3, **drawn)
        for x, _, low, high in one.points:
            if x is not None and low < high:
                axes.plot([x, x], [low, high], color=drawn["color"], linewidth=1, alpha=0.6, zorder=2)
    if panel.x_log:
        axes.set_xscale("log")
    axes.set_xticks([position for position, _ in panel.ticks], [text for _, text in panel.ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    if sum(len(text) for _, text in panel.ticks) > 34:
        axes.tick_params(axis="x", labelsize=6)
        for label in axes.get_xticklabels():  # ends at its tick: a long one would leave the picture
            label.set(rotation=35, horizontalalignment="right", rotation_mode="anchor")
    if panel.linear_below is not None:
        axes.set_yscale("symlog", linthresh=panel.linear_below)
        axes.set_ylim(bottom=-panel.linear_below / 4)
    elif panel.y_log:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=8))
    else:
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.4g}")
    axes.grid(axis="y", color=LINE, linewidth=0.8)


def _draw_dots(axes: Axes, panel: Dots, slots: dict[str, int]) -> None:
    for number, row in enumerate(panel.rows):
        drawn = {**look(row.style, slots), "linestyle": "none"}
        if row.style.label == FLOOR:
            drawn |= {"marker": "|", "markersize": 7}
        axes.plot([row.low, row.high], [number, number], color=drawn["color"], linewidth=1.3, alpha=0.6)
        axes.plot([row.value], [number], gid=f"tip-{number}", zorder=3, **drawn)
    if panel.level is not None:
        axes.axvline(panel.level, color=SOFT, linewidth=1.1, dashes=(4, 3), zorder=1)
    if panel.log:
        axes.set_xscale("log")
        edges = [edge for row in panel.rows for edge in (row.low, row.high)] + [panel.level or 1.0]
        axes.set_xlim(min(edges) / 1.15, max(edges) * 1.15)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7), numticks=9))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.4g}")
    else:
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_ylim(len(panel.rows) - 0.4, -0.6)
    axes.set_yticks(range(len(panel.rows)), [visible(row.name) for row in panel.rows])
    axes.tick_params(axis="y", labelcolor=INK)
    axes.grid(axis="x", color=LINE, linewidth=0.8)


def _draw_bars(axes: Axes, panel: Bars, slots: dict[str, int]) -> None:
    for number, bar in enumerate(panel.bars):
        drawn = {**look(bar.style, slots), "linestyle": "none"}
        axes.bar([number], [bar.height], width=0.82, color=drawn["color"], gid=f"tip-{number}", zorder=2)
        axes.plot([number], [bar.height], zorder=3, clip_on=False, **{**drawn, "markersize": 4})
    if panel.level is not None:
        axes.axhline(panel.level, color=SOFT, linewidth=1.1, dashes=(4, 3), zorder=3)
    axes.set_xlim(-0.6, len(panel.bars) - 0.4)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.grid(axis="y", color=LINE, linewidth=0.8)


def _mark(style: Style, slots: dict[str, int]) -> Figure:
    """A short piece of the line, for a page's legend."""
    figure = Figure((0.3, drawing.MARK), facecolor="none")
    figure.add_artist(Line2D([0, 0.5, 1], [0.5] * 3, transform=figure.transFigure, **look(style, slots)))
    return figure


def _named(panel: Panel) -> Sequence[tuple[str, Style]]:
    """What a legend names."""
    if isinstance(panel, Bars):
        return [(bar.style.label, bar.style) for bar in panel.bars]
    named: Sequence[Series | Row] = panel.series if isinstance(panel, Lines) else panel.rows
    return [(one.name, one.style) for one in named]


def _tips(panel: Panel) -> dict[str, str]:
    """What hovering shows, by the drawn element's id."""
    if isinstance(panel, Lines):
        return {f"tip-{number}": one.name for number, one in enumerate(panel.series)}
    if isinstance(panel, Bars):
        return {f"tip-{number}": bar.said for number, bar in enumerate(panel.bars)}
    tips = (f"{row.name}: {row.value:.3g} ({row.low:.3g} to {row.high:.3g})" for row in panel.rows)
    return {f"tip-{number}": tip for number, tip in enumerate(tips)}
