"""What a picture of a result that is no run shows: lines over a quantity, values with intervals in rows, or bars."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

LEFT, RIGHT, TOP, BOTTOM = 0.52, 0.14, 0.34, 0.46  # inches around a panel
LINES_HEIGHT, ROW = 2.5, 0.2


@dataclass(frozen=True)
class Style:
    """How an arm looks: its label's colour and mark, and which of the label's patterns."""

    label: str
    pattern: int = 0


@dataclass(frozen=True)
class Series:
    """One arm: points (x, y, low, high); low and high are y where there is no range. A gap is x None."""

    name: str
    style: Style
    points: tuple[tuple[float | None, float, float, float], ...]


@dataclass(frozen=True)
class Lines:
    """Series over x. `ticks` are (position, text); `bars` (x, height) lie behind; `linear_below`: log axis with 0."""

    height: ClassVar[float] = LINES_HEIGHT
    left: ClassVar[float] = LEFT

    title: str
    x_name: str
    series: tuple[Series, ...]
    ticks: tuple[tuple[float, str], ...]
    x_log: bool = False
    y_log: bool = False
    linear_below: float | None = None
    bars: tuple[tuple[float, float], ...] = ()

    @property
    def text(self) -> str:
        found = "; ".join(
            f"{one.name} " + ", ".join(f"{y:.3g}" for x, y, _, _ in one.points if x is not None) for one in self.series
        )
        return f"{self.title} over {self.x_name}. {found}."


@dataclass(frozen=True)
class Row:
    """A value with its interval, or with its range."""

    name: str
    style: Style
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Dots:
    """Rows below each other. `level` is drawn across them, `log` makes a factor the same length everywhere."""

    title: str
    x_name: str
    rows: tuple[Row, ...]
    level: float | None = None
    log: bool = False

    @property
    def text(self) -> str:
        found = "; ".join(f"{row.name} {row.value:.3g} ({row.low:.3g} to {row.high:.3g})" for row in self.rows)
        return f"{self.title}: {self.x_name}. {found}."

    @property
    def height(self) -> float:
        return TOP + BOTTOM + ROW * (len(self.rows) + 0.6)

    @property
    def left(self) -> float:
        return min(0.24 + 0.062 * max(len(row.name) for row in self.rows), 1.9)


@dataclass(frozen=True)
class Bar:
    """One bar: its colour and the mark on its top are its style's label, `said` is read instead of it."""

    style: Style
    height: float
    said: str


@dataclass(frozen=True)
class Bars:
    """Bars beside each other, numbered from 0. `level` is drawn across them."""

    height: ClassVar[float] = LINES_HEIGHT
    left: ClassVar[float] = LEFT

    title: str
    x_name: str
    y_name: str
    bars: tuple[Bar, ...]
    level: float | None = None

    @property
    def text(self) -> str:
        return f"{self.title}: {self.y_name} by {self.x_name}. {'; '.join(bar.said for bar in self.bars)}."


Panel = Lines | Dots | Bars


def styles(arms: Sequence[Any]) -> dict[str, Style]:
    """Arm -> style, from arms with name and label, in their order."""
    counts: dict[str, int] = {}
    found = {}
    for arm in arms:
        found[arm.name] = Style(arm.label, counts.get(arm.label, 0))
        counts[arm.label] = counts.get(arm.label, 0) + 1
    return found
