"""Which figures a run has: panels, dots and heatmaps as data, from results and records, in the page's order."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from matplotlib.axes import Axes

from sa_eval.page import drawing
from sa_eval.page.content import length_name
from sa_eval.page.plots import Dots, Heatmap, Panel, Picture, Point
from sa_eval.records.types import FULL, ArmRow, Record
from sa_eval.results.types import Cell, Length, MeasuredSpeed, Results

KEYS = "keys per query"
DEPTHS = 5
COSTS: tuple[tuple[str, str, Callable[[MeasuredSpeed], float | None]], ...] = (
    ("prefill", "ms", lambda row: row.prefill_ms),
    ("decode", "tokens per second", lambda row: row.decode_tokens_per_s),
    ("peak memory", "GiB", lambda row: row.peak_gib),
)
Spent = Mapping[tuple[str, Length], float]


@dataclass(frozen=True)
class Figure:
    """A row of pictures with one legend. `name` is its file's name, `length` says under which heading it stands."""

    name: str
    heading: str
    length: Length
    items: Sequence[Picture]
    draw: Callable[[Axes, Any], None]
    labels: tuple[str, ...] = ()  # of the legend
    slots: Mapping[str, int] | None = None


def all_labels(results: Results) -> list[str]:
    return list(dict.fromkeys(arm.label for arm in results.arms if arm.name != FULL))


def tails(results: Results) -> list[int]:
    return sorted({arm.dense_tail for arm in results.arms if arm.name != FULL})


def one_window(results: Results) -> bool:
    """Whether all arms have one budget: accuracy against keys per query would be points above each other."""
    return len({arm.window for arm in results.arms if arm.name != FULL}) == 1


def headline(results: Results) -> Figure | None:
    """What the answer rests on: overall accuracy of all arms, all lengths together where one budget is all there is."""
    cells = [cell for cell in results.cells if cell.scope == "overall"]
    if one_window(results):
        cells = [cell for cell in cells if cell.length == "all"] or cells
        pictures = [
            _dots(_tail_name(tail) or "Overall", _points(results, cells, {}, tail))
            for tail in tails(results)
            if any(cell.arm == arm.name for cell in cells for arm in _with_tail(results, tail) if arm.name != FULL)
        ]
        return _figure("headline", "Accuracy in %, with 95 % intervals", None, pictures, results) if pictures else None
    found = [figure for figure in accuracy(results) if figure.name.startswith("accuracy-family")]
    panels = [(figure, item) for figure in found for item in figure.items[:1]]
    if not panels:
        return None
    pictures = [_titled(item, figure.heading) for figure, item in panels[-2:]]
    return _figure("headline", "Accuracy in %, with 95 % intervals", None, pictures, results)


def accuracy(results: Results) -> list[Figure]:
    """Accuracy at the measured budget: per length and dense tail, one figure of families, one of tasks."""
    keys: Spent = {(row.arm, row.length): row.keys_per_query for row in results.budgets}
    cells = [cell for cell in results.cells if (cell.arm, cell.length) in keys]
    sparse = [value for (arm, _), value in keys.items() if arm != FULL]
    if not sparse or not cells:
        return []
    x_range = _range(sparse)
    figures = []
    lengths: dict[Length, None] = dict.fromkeys(cell.length for cell in cells)
    for length in lengths:
        for tail in tails(results):
            here = [cell for cell in cells if cell.length == length]
            note = _tail_name(tail) if tail or len(tails(results)) > 1 else ""
            for kind, scopes in (("family", ("overall", "family")), ("task", ("task",))):
                found = [cell for cell in here if cell.scope in scopes]
                pictures: list[Picture] = []
                for name in dict.fromkeys(cell.name for cell in found):
                    points = _points(results, [cell for cell in found if cell.name == name], keys, tail)
                    title = name.replace("_", " ")
                    dots = one_window(results)
                    pictures.append(_dots(title, points) if dots else _panel(title, KEYS, points, x_range, True))
                name = f"accuracy-{kind}-{_slug(length)}" + (f"-tail{tail}" if tail else "")
                heading = ", ".join(filter(None, (length_name(length), note.lower())))
                figures.append(_figure(name, heading, length, pictures, results))
    return figures


def _tail_name(tail: int) -> str:
    return f"Last {tail} prompt tokens dense" if tail else "No dense tail"


def _with_tail(results: Results, tail: int) -> list[ArmRow]:
    """Arms with this dense tail, and full."""
    return [arm for arm in results.arms if arm.name == FULL or arm.dense_tail == tail]


def costs(results: Results) -> list[Figure]:
    """Overall accuracy against what was measured of time and memory, per length; what was not measured is left out."""
    figures = []
    for length in dict.fromkeys(row.length for row in results.speed):
        rows = [row for row in results.speed if row.length == length]
        cells = [cell for cell in results.cells if cell.length == length and cell.scope == "overall"]
        panels = []
        for title, unit, cost_of in COSTS:
            spent: dict[tuple[str, Length], float] = {
                (row.arm, length): cost for row in rows if (cost := cost_of(row)) is not None
            }
            points = _points(results, [cell for cell in cells if (cell.arm, length) in spent], spent)
            if len(points) > 1:
                panels.append(_panel(title, unit, points, _range([point.x for point in points if point.x]), False))
        if panels:
            figures.append(_figure(f"cost-{_slug(length)}", length_name(length), length, panels, results))
    return figures


def depths(results: Results, records: Iterable[Record]) -> list[Heatmap]:
    """One heatmap per arm: mean score by depth of the asked fact and by length, over all documents that have one."""
    scores: dict[tuple[str, Length, int], list[float]] = defaultdict(list)
    for record in records:
        if record.depth is not None:
            fifth = min(DEPTHS - 1, int(record.depth * DEPTHS))
            scores[record.arm, record.length, fifth].append(record.score)
    found: set[Length] = {length for _, length, _ in scores}
    lengths = sorted(found, key=_by_length)
    rows = tuple(f"{100 * fifth // DEPTHS}\u2013{100 * (fifth + 1) // DEPTHS} %" for fifth in range(DEPTHS))
    heatmaps = []
    for arm in results.arms:
        cells = [[scores.get((arm.name, length, fifth), []) for length in lengths] for fifth in range(DEPTHS)]
        if any(cell for row in cells for cell in row):
            shares = tuple(tuple(sum(cell) / len(cell) if cell else None for cell in row) for row in cells)
            counts = tuple(tuple(len(cell) for cell in row) for row in cells)
            columns = tuple("own" if length is None else f"{length:,}" for length in lengths)
            heatmaps.append(Heatmap(arm.name, rows, columns, shares, counts))
    return heatmaps


def depth_figure(heatmaps: list[Heatmap]) -> Figure:
    return Figure("depth", "Accuracy in % by depth and length", None, heatmaps, drawing.draw_heatmap)


def _by_length(length: Length) -> tuple[bool, int]:
    return length is None, length if isinstance(length, int) else 0


def _figure(name: str, heading: str, length: Length, items: Sequence[Picture], results: Results) -> Figure:
    """A figure of panels or dots; these name their rows themselves and need no legend."""
    slots = drawing.looks(all_labels(results))
    if all(isinstance(item, Dots) for item in items):
        return Figure(name, heading, length, items, partial(drawing.draw_dots, slots=slots), (), slots)
    found = {point.label for item in items if isinstance(item, Panel) for point in item.points}
    shown = tuple(label for label in all_labels(results) if label in found)
    return Figure(name, heading, length, items, partial(drawing.draw_panel, slots=slots), shown, slots)


def _dots(title: str, points: list[Point]) -> Dots:
    full = next((point for point in points if point.arm == FULL), None)
    return Dots(title, KEYS, tuple(point for point in points if point.arm != FULL), full)


def _panel(title: str, x_name: str, points: list[Point], x_range: tuple[float, float], matched: bool) -> Panel:
    """Full attention is a level; where it has a cost of its own (not a window's) it is a point as well."""
    full = next((point for point in points if point.arm == FULL), None)
    shown = tuple(point for point in points if point.arm != FULL or not matched)
    return Panel(title, x_name, shown, full, x_range, matched)


def _points(results: Results, cells: Sequence[Cell], spent: Spent, tail: int | None = None) -> list[Point]:
    """Arms (with this dense tail, where one is given) in the order of the tables."""
    arms = {arm.name: arm.label for arm in results.arms if tail is None or arm in _with_tail(results, tail)}
    return [
        Point(arms[cell.arm], cell.arm, spent.get((cell.arm, cell.length)), cell.accuracy, cell.low, cell.high)
        for cell in cells
        if cell.arm in arms
    ]


def _titled(item: Picture, title: str) -> Picture:
    return replace(item, title=title[:1].upper() + title[1:]) if isinstance(item, Panel) else item


def _range(values: list[float]) -> tuple[float, float]:
    """Room at both ends of a logarithmic axis, and at least a factor of 1.8 in all."""
    centre, reach = math.sqrt(min(values) * max(values)), math.sqrt(max(values) / min(values))
    half = max(1.18 * reach, 1.35)
    return centre / half, centre * half


def _slug(length: Length) -> str:
    return "own" if length is None else str(length)
