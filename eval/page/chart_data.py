"""Owns which figures a run has: panels and heatmaps as data, from results and records, in the page's order."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from matplotlib.axes import Axes

from sa_eval.page import charts
from sa_eval.page.charts import FULL, Heatmap, Panel, Point
from sa_eval.page.parts import length_name

DEPTHS = 5
COSTS = (
    ("prefill_ms", "prefill", "ms"),
    ("decode_tokens_per_s", "decode", "tokens per second"),
    ("peak_gib", "peak memory", "GiB"),
)


@dataclass(frozen=True)
class Figure:
    """A row of pictures with one legend. `name` is its file's name, `length` says under which heading it stands."""

    name: str
    heading: str
    length: Any
    items: tuple[Panel | Heatmap, ...]
    labels: tuple[str, ...]
    places: dict[str, int]
    draw: Callable[[Axes, Any], None]


def all_labels(results: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(arm["label"] for arm in results["arms"] if arm["name"] != FULL))


def accuracy(results: dict[str, Any]) -> list[Figure]:
    """Accuracy against measured keys per query: per length and dense tail, one figure of families, one of tasks."""
    keys = {(row["arm"], row["length"]): row["keys_per_query"] for row in results["budgets"]}
    cells = [cell for cell in results["cells"] if (cell["arm"], cell["length"]) in keys]
    sparse = [value for (arm, _), value in keys.items() if arm != FULL]
    if not sparse or not cells:
        return []
    x_range = _range(sparse)
    tails = sorted({arm["dense_tail"] for arm in results["arms"] if arm["name"] != FULL})
    figures = []
    for length in dict.fromkeys(cell["length"] for cell in cells):
        for tail in tails:
            arms = {arm["name"] for arm in results["arms"] if arm["name"] == FULL or arm["dense_tail"] == tail}
            here = [cell for cell in cells if cell["length"] == length and cell["arm"] in arms]
            note = f", last {tail} prompt tokens dense" if tail else ", no dense tail" if len(tails) > 1 else ""
            for kind, scopes in (("family", ("overall", "family")), ("task", ("task",))):
                found = [cell for cell in here if cell["scope"] in scopes]
                panels = [
                    _panel(name.replace("_", " "), "keys per query", _points(results, found, keys, name), x_range, True)
                    for name in dict.fromkeys(cell["name"] for cell in found)
                ]
                name = f"accuracy-{kind}-{_slug(length)}" + (f"-tail{tail}" if tail else "")
                figures.append(_figure(name, f"{length_name(length)}{note}", length, panels, results))
    return figures


def costs(results: dict[str, Any]) -> list[Figure]:
    """Overall accuracy against what was measured of time and memory, per length; what was not measured is left out."""
    figures = []
    for length in dict.fromkeys(row["length"] for row in results["speed"]):
        rows = [row for row in results["speed"] if row["length"] == length]
        cells = [cell for cell in results["cells"] if cell["length"] == length and cell["scope"] == "overall"]
        panels = []
        for key, title, unit in COSTS:
            spent = {(row["arm"], length): row[key] for row in rows if row[key] is not None}
            points = _points(results, [cell for cell in cells if (cell["arm"], length) in spent], spent, "overall")
            if len(points) > 1:
                panels.append(_panel(title, unit, points, _range([point.x for point in points]), False))
        if panels:
            figures.append(_figure(f"cost-{_slug(length)}", length_name(length), length, panels, results))
    return figures


def depths(results: dict[str, Any], records: Iterable[dict[str, Any]]) -> list[Heatmap]:
    """One heatmap per arm: mean score by depth of the asked fact and by length, over all documents that have one."""
    scores: dict[tuple[str, Any, int], list[float]] = defaultdict(list)
    for record in records:
        if record["depth"] is not None:
            part = min(DEPTHS - 1, int(record["depth"] * DEPTHS))
            scores[record["arm"], record["length"], part].append(record["score"])
    lengths = sorted({length for _, length, _ in scores}, key=lambda length: (length is None, length or 0))
    rows = tuple(f"{100 * part // DEPTHS}\u2013{100 * (part + 1) // DEPTHS} %" for part in range(DEPTHS))
    heatmaps = []
    for arm in results["arms"]:
        cells = [[scores.get((arm["name"], length, part), []) for length in lengths] for part in range(DEPTHS)]
        if any(cell for row in cells for cell in row):
            shares = tuple(tuple(sum(cell) / len(cell) if cell else None for cell in row) for row in cells)
            counts = tuple(tuple(len(cell) for cell in row) for row in cells)
            columns = tuple("own" if length is None else f"{length:,}" for length in lengths)
            heatmaps.append(Heatmap(arm["name"], rows, columns, shares, counts))
    return heatmaps


def depth_figure(heatmaps: list[Heatmap]) -> Figure:
    return Figure("depth", "Accuracy in % by depth and length", None, tuple(heatmaps), (), {}, charts.draw_heatmap)


def _figure(name: str, heading: str, length: Any, panels: list[Panel], results: dict[str, Any]) -> Figure:
    found = {point.label for panel in panels for point in panel.points}
    labels = all_labels(results)
    places = charts.slots(labels)
    shown = tuple(label for label in labels if label in found)
    return Figure(name, heading, length, tuple(panels), shown, places, partial(charts.draw_panel, places=places))


def _panel(title: str, x_name: str, points: list[Point], x_range: tuple[float, float], matched: bool) -> Panel:
    """Full attention is a level; where it has a cost of its own (not a window's) it is a point as well."""
    full = next((point for point in points if point.arm == FULL), None)
    shown = tuple(point for point in points if point.arm != FULL or not matched)
    return Panel(title, x_name, shown, full, x_range, matched)


def _points(
    results: dict[str, Any], cells: list[dict[str, Any]], spent: dict[tuple[str, Any], float], name: str
) -> list[Point]:
    labels = {arm["name"]: arm["label"] for arm in results["arms"]}
    return [
        Point(labels[cell["arm"]], cell["arm"], spent[cell["arm"], cell["length"]], *_estimate(cell))
        for cell in cells
        if cell["name"] == name
    ]


def _estimate(cell: dict[str, Any]) -> tuple[float, float, float]:
    return cell["accuracy"], cell["low"], cell["high"]


def _range(values: list[float]) -> tuple[float, float]:
    """Room at both ends of a logarithmic axis, and at least a factor of 1.8 in all."""
    centre, reach = math.sqrt(min(values) * max(values)), math.sqrt(max(values) / min(values))
    half = max(1.18 * reach, 1.35)
    return centre / half, centre * half


def _slug(length: Any) -> str:
    return "own" if length is None else str(length)
