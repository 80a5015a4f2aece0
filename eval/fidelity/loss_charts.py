"""The pictures of a fidelity result, for its page and its files."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sa_eval.fidelity.types import Cell, CopyRow, Fidelity, MassRow
from sa_eval.page.drawing import looks
from sa_eval.page.result_panels import Dots, Lines, Row, Series, Style, styles
from sa_eval.page.result_plots import Picture
from sa_eval.records.types import FULL

SMALLEST_KL = 1e-4  # the axis is linear below, so that full's 0 is on it
LAYER_MEASURES = (
    ("kept_mass", "kept mass, %"),
    ("isolated_error", "attention error fed by full, %"),
    ("attention_error", "attention error, patched, %"),
    ("residual_error", "residual error, patched, %"),
)
Point = tuple[float | None, float, float, float]


def pictures(results: Fidelity) -> dict[str, Picture]:
    """By name, in the page's order."""
    made = (losses, kl_by_position, kl_by_copy_distance, kept_mass_by_distance, layers)
    return {picture.name: picture for picture in (draw(results) for draw in made)}


def losses(results: Fidelity) -> Picture:
    """KL of every arm with its interval, the largest first."""
    look = styles(results.arms)
    panels = []
    for length in results.lengths:
        rows = []
        for cell in ordered(results, length):
            if cell.arm != FULL:
                low, high = cell.intervals.kl or (cell.overall.kl, cell.overall.kl)
                rows.append(Row(cell.arm, look[cell.arm], cell.overall.kl, low, high))
        panels.append(Dots(f"{length:,} tokens", "KL(full || arm), nats", tuple(rows)))
    return _picture("losses", "How far the next-token distribution is from full's, in nats", results, panels)


def kl_by_position(results: Fidelity) -> Picture:
    def points(cell: Cell) -> list[Point]:
        return [_point(row.high or 0, row.kl) for row in cell.by_position if row.kl is not None]

    panels = []
    for length in results.lengths:
        rows = results.at(length)[0].by_position
        ticks = [(float(row.high or 0), f"{row.high:,}") for row in rows][-6:]
        panels.append(_lines(results, length, "tokens read before", points, ticks, x_log=True, linear=SMALLEST_KL))
    return _picture("kl_by_position", "KL by tokens read before, every prediction, in nats", results, panels)


def kl_by_copy_distance(results: Fidelity) -> Picture:
    def points(cell: Cell) -> list[Point]:
        return _with_gap(cell.by_copy_distance, lambda row: row.kl)

    panels = [
        _lines(
            results,
            length,
            "distance to the token that could be copied",
            points,
            _places(results.at(length)[0].by_copy_distance),
            linear=SMALLEST_KL,
        )
        for length in results.lengths
    ]
    heading = "KL by how far back the token could be copied from, scored predictions, in nats"
    return _picture("kl_by_copy_distance", heading, results, panels)


def kept_mass_by_distance(results: Fidelity) -> Picture:
    """Share of full attention's mass that each arm keeps; bars: where the mass is."""

    def points(cell: Cell) -> list[Point]:
        return _with_gap(cell.mass_by_distance, lambda row: None if row.kept_mass is None else 100 * row.kept_mass)

    panels = []
    for length in results.lengths:
        rows = results.at(length)[0].mass_by_distance
        bars = [(x, 100 * row.share_of_mass) for (x, _), row in zip(_places(rows), rows, strict=True)]
        panels.append(_lines(results, length, "tokens between query and key", points, _places(rows), bars=bars))
    heading = "Full attention's mass: % kept by each arm (lines), % of all mass (bars)"
    return _picture("kept_mass_by_distance", heading, results, panels)


def layers(results: Fidelity) -> Picture:
    panels = []
    for length in results.lengths:
        count = len(results.at(length)[0].layers)
        step = max(1, count // 6)
        ticks = [(float(layer), str(layer)) for layer in range(0, count, step)]
        for name, title in LAYER_MEASURES:

            def points(cell: Cell, name: str = name) -> list[Point]:
                found = ((row.layer, getattr(row, name)) for row in cell.layers)
                return [_point(layer, 100 * value) for layer, value in found if value is not None]

            panels.append(_lines(results, length, "layer", points, ticks, title=f"{title}, {length:,} tokens"))
    return _picture("layers", "Layer by layer", results, panels)


def ordered(results: Fidelity, length: int) -> list[Cell]:
    """The arms at a length, the largest KL first."""
    return sorted(results.at(length), key=lambda cell: -cell.overall.kl)


def _lines(
    results: Fidelity,
    length: int,
    x_name: str,
    points: Callable[[Cell], list[Point]],
    ticks: Sequence[tuple[float, str]],
    *,
    title: str = "",
    x_log: bool = False,
    linear: float | None = None,
    bars: Sequence[tuple[float, float]] = (),
) -> Lines:
    look: dict[str, Style] = styles(results.arms)
    series = tuple(Series(cell.arm, look[cell.arm], tuple(points(cell))) for cell in results.at(length))
    title = title or f"{length:,} tokens"
    return Lines(title, x_name, series, tuple(ticks), x_log=x_log, linear_below=linear, bars=tuple(bars))


def _with_gap(rows: Sequence[CopyRow] | Sequence[MassRow], value: Callable[..., float | None]) -> list[Point]:
    """Buckets side by side; the one without a distance stands alone, no line leads there."""
    found: list[Point] = []
    for (x, _), row in zip(_places(rows), rows, strict=True):
        if row.low is None:
            found.append((None, 0.0, 0.0, 0.0))
        y = value(row)
        if y is not None:
            found.append(_point(x, y))
    return found


def _places(rows: Sequence[CopyRow] | Sequence[MassRow]) -> list[tuple[float, str]]:
    """Where each bucket stands, the one without a distance set apart."""
    return [(index + float(row.low is None), row.bucket) for index, row in enumerate(rows)]


def _point(x: float, y: float) -> Point:
    return float(x), y, y, y


def _picture(name: str, heading: str, results: Fidelity, panels: Sequence[Lines | Dots]) -> Picture:
    slots = looks(arm.label for arm in results.arms)
    return Picture(name, f"{heading}: {results.model['name']}", tuple(panels), slots)
