"""figures/: the page's figures as PNG and SVG, and what they show as CSV, from the same data as the page."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib.figure

from sa_eval.page import document_list, drawing, pictures, svg
from sa_eval.page.pictures import Figure
from sa_eval.page.plots import Dots, Heatmap, Panel
from sa_eval.records.types import Record
from sa_eval.results.types import Results

COLUMNS = 5  # pictures beside each other
PANEL_COLUMNS = ("figure", "panel", "arm", "label", "x", "x_name", "accuracy", "low", "high")
DEPTH_COLUMNS = ("arm", "depth", "length", "accuracy", "answers")


def write(
    folder: Path,
    results: Results,
    records: list[Record],
    documents: list[document_list.Document],
) -> None:
    """Everything into `folder`; files of an earlier report of the same run are replaced."""
    folder.mkdir(exist_ok=True)
    accuracy, costs = pictures.accuracy(results), pictures.costs(results)
    heatmaps = pictures.depths(results, records)
    headline = pictures.headline(results)
    figures = [*([headline] if headline else []), *accuracy, *costs]
    figures += [pictures.depth_figure(heatmaps)] if heatmaps else []
    for figure in figures:
        drawn = _alone(figure)
        for kind in ("svg", "png"):
            (folder / f"{figure.name}.{kind}").write_bytes(svg.save(drawn, kind))
    _write(folder / "accuracy.csv", PANEL_COLUMNS, _points(accuracy))
    _write(folder / "costs.csv", PANEL_COLUMNS, _points(costs))
    _write(folder / "depth.csv", DEPTH_COLUMNS, _squares(heatmaps))
    (folder / "documents.csv").write_text(document_list.to_csv(documents, records), encoding="utf-8")


def _alone(figure: Figure) -> matplotlib.figure.Figure:
    """The figure as it stands without the page around it: with its heading and its legend."""
    heading = figure.heading if figure.name in ("depth", "headline") else f"Accuracy in %, {figure.heading}"
    legend = [] if figure.name == "depth" else drawing.legend(figure.labels, figure.slots or {})
    return drawing.sheet(figure.items, figure.draw, COLUMNS, heading, legend)


def _points(figures: Iterable[Figure]) -> Iterable[Sequence[object]]:
    for figure in figures:
        for picture in figure.items:
            if isinstance(picture, (Panel, Dots)):
                full = [picture.full] if picture.full is not None and picture.full not in picture.points else []
                for point in [*full, *picture.points]:
                    estimate = (point.y, point.low, point.high)
                    yield (figure.name, picture.title, point.arm, point.label, point.x, picture.x_name, *estimate)


def _squares(heatmaps: Iterable[Heatmap]) -> Iterable[Sequence[object]]:
    for heatmap in heatmaps:
        for depth, shares, counts in zip(heatmap.rows, heatmap.shares, heatmap.counts, strict=True):
            for length, share, count in zip(heatmap.columns, shares, counts, strict=True):
                yield (heatmap.title, depth, length.replace(",", ""), share, count)


def _write(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    path.write_text(stream.getvalue(), encoding="utf-8")
