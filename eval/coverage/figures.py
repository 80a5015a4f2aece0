"""figures/ of `sa-eval coverage`: theory over measurement, several windows in one panel, a panel per mode."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any, cast

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sa_eval.coverage.types import CoverageResult, CoverageRow, Curve
from sa_eval.records.directory import RunDirectory
from sa_patch.analysis import Coverage, plot_coverage, plot_distances

WIDTH, HEIGHT, DPI = 3.9, 3.3, 110
DEPTHS = (1, 2, 3, 4, 6, 12)


def write(directory: RunDirectory, result: CoverageResult) -> list[str]:
    """PNG and SVG per length and direction; their names."""
    folder = directory.path / "figures"
    folder.mkdir(exist_ok=True)
    names = []
    for length in dict.fromkeys(row.length for row in result.rows):
        rows = [row for row in result.rows if row.length == length]
        for causal in (True, False):
            shown = [(row, curve) for row in rows for curve in row.curves if curve.causal == causal]
            if shown:
                name = f"coverage-{length}-{'causal' if causal else 'both'}"
                _save(folder, name, _curves(shown))
                names.append(name)
            if shown and causal:
                _save(folder, f"distances-{length}", _distances(shown))
                names.append(f"distances-{length}")
    return names


def curve_of(row: Curve) -> Coverage:
    """The simulated curve that a row holds."""
    intervals = [tuple(math.nan if end is None else end for end in interval) for interval in row.intervals]
    return Coverage(**{**asdict(row), "intervals": intervals})


def _curves(shown: list[tuple[CoverageRow, Curve]]) -> Figure:
    labels = list(dict.fromkeys(row.label for row, _ in shown))
    figure, panels = _panels(len(labels))
    for label, axes in zip(labels, panels, strict=True):
        own = [(row, curve_of(curve)) for row, curve in shown if row.label == label]
        plot_coverage([curve for _, curve in own], axes, labels=[f"w = {row.window}" for row, _ in own])
        axes.set_title(f"{label}, {axes.get_title()}", fontsize=9)
    return figure


def _distances(shown: list[tuple[CoverageRow, Curve]]) -> Figure:
    """A panel per label, at its smallest window."""
    first = {row.label: (row, curve) for row, curve in reversed(shown)}
    figure, panels = _panels(len(first))
    for (row, curve), axes in zip(reversed(first.values()), panels, strict=True):
        plot_distances(curve_of(curve), axes, depths=DEPTHS)
        axes.set_title(f"{row.arm}, {row.length:,} tokens", fontsize=9)
    return figure


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    figure = Figure((WIDTH * count, HEIGHT), layout="constrained")
    return figure, list(cast(Any, figure.subplots(1, count, squeeze=False))[0])


def _save(folder: Any, name: str, figure: Figure) -> None:
    figure.savefig(folder / f"{name}.png", dpi=DPI)
    figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
