"""Owns figures/: the page's figures as PNG and SVG, and what they show as CSV, from the same data as the page."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from sa_eval.page import chart_data, charts, document_list, svg
from sa_eval.page.chart_data import Figure
from sa_eval.page.charts import Heatmap, Panel

COLUMNS = 5  # pictures beside each other
PANEL_COLUMNS = ("figure", "panel", "arm", "label", "x", "x_name", "accuracy", "low", "high")
DEPTH_COLUMNS = ("arm", "depth", "length", "accuracy", "answers")


def write(
    folder: Path,
    results: dict[str, Any],
    records: list[dict[str, Any]],
    documents: list[document_list.Document],
) -> None:
    """Everything into `folder`; files of an earlier report of the same run are replaced."""
    folder.mkdir(exist_ok=True)
    accuracy, costs = chart_data.accuracy(results), chart_data.costs(results)
    heatmaps = chart_data.depths(results, records)
    figures = [*accuracy, *costs, *([chart_data.depth_figure(heatmaps)] if heatmaps else [])]
    for figure in figures:
        drawn = _alone(figure)
        for kind in ("svg", "png"):
            (folder / f"{figure.name}.{kind}").write_bytes(svg.save(drawn, kind))
    _write(folder / "accuracy.csv", PANEL_COLUMNS, _points(accuracy))
    _write(folder / "costs.csv", PANEL_COLUMNS, _points(costs))
    _write(folder / "depth.csv", DEPTH_COLUMNS, _squares(heatmaps))
    (folder / "documents.csv").write_text(document_list.to_csv(documents, records), encoding="utf-8")


def _alone(figure: Figure) -> Any:
    """The figure as it stands without the page around it: with its heading and its legend."""
    heading = figure.heading if figure.name == "depth" else f"Accuracy in %, {figure.heading}"
    legend = charts.legend(figure.labels, figure.places) if figure.labels else ()
    return charts.sheet(figure.items, figure.draw, COLUMNS, heading, legend)


def _points(figures: Iterable[Figure]) -> Iterable[Sequence[Any]]:
    for figure in figures:
        for panel in figure.items:
            assert isinstance(panel, Panel)
            full = [panel.full] if panel.full is not None and panel.full not in panel.points else []
            for point in [*full, *panel.points]:
                estimate = (point.y, point.low, point.high)
                yield (figure.name, panel.title, point.arm, point.label, point.x, panel.x_name, *estimate)


def _squares(heatmaps: Iterable[Heatmap]) -> Iterable[Sequence[Any]]:
    for heatmap in heatmaps:
        for depth, shares, counts in zip(heatmap.rows, heatmap.shares, heatmap.counts, strict=True):
            for length, share, count in zip(heatmap.columns, shares, counts, strict=True):
                yield (heatmap.title, depth, length.replace(",", ""), share, count)


def _write(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    path.write_text(stream.getvalue(), encoding="utf-8")
