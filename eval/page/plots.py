"""What a picture holds, as data: accuracy against a cost, in rows, or by depth and length. Sizes are in inches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

WIDTH, HEIGHT = 3.0, 2.3
RIGHT, TOP, BOTTOM = 0.14, 0.32, 0.44
ROW, CHARACTER = 0.21, 0.068  # of a chart of dots: a row's height, a character's width


class Picture(Protocol):
    """One cell of a sheet: its title, its size in inches, and what it shows in words."""

    @property
    def title(self) -> str: ...

    @property
    def left(self) -> float: ...

    @property
    def height(self) -> float: ...

    @property
    def text(self) -> str: ...


@dataclass(frozen=True)
class Point:
    """One arm in one picture; y, low and high are shares between 0 and 1, x is in the panel's unit (None: no such)."""

    label: str
    arm: str
    x: float | None
    y: float
    low: float
    high: float


@dataclass(frozen=True)
class Panel:
    """Accuracy against one cost. `full` is drawn as a level with its interval; x_range is shared by a row of panels."""

    title: str
    x_name: str
    points: tuple[Point, ...]
    full: Point | None
    x_range: tuple[float, float]
    matched: bool  # x is a budget that arms share: ticks at powers of two, and arms are set apart
    left = 0.38  # for the labels of the y axis
    height = HEIGHT

    @property
    def text(self) -> str:
        """What the chart shows, in words."""
        return f"{self.title}: accuracy against {self.x_name}. " + "; ".join(tips(self).values()) + "."


@dataclass(frozen=True)
class Dots:
    """Accuracy of arms at one budget, a row each; `full` is drawn as a level with its interval."""

    title: str
    x_name: str  # what the points' x is, which this picture does not draw
    points: tuple[Point, ...]
    full: Point | None

    @property
    def left(self) -> float:
        return 0.22 + CHARACTER * max((len(point.label) for point in self.points), default=0)

    @property
    def height(self) -> float:
        return TOP + BOTTOM + ROW * (len(self.points) + 0.4)

    @property
    def text(self) -> str:
        return f"{self.title}: accuracy. " + "; ".join(tips(self).values()) + "."


@dataclass(frozen=True)
class Heatmap:
    """Shares by row and column with how many answers each rests on; None where there is none."""

    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    shares: tuple[tuple[float | None, ...], ...]
    counts: tuple[tuple[int, ...], ...]
    left = 0.64
    height = HEIGHT

    @property
    def text(self) -> str:
        shown = [
            f"depth {row}, {column} tokens: " + ("no documents" if share is None else f"{100 * share:.0f} %")
            for row, shares in zip(self.rows, self.shares, strict=True)
            for column, share in zip(self.columns, shares, strict=True)
        ]
        return f"{self.title}, accuracy by depth and length. " + "; ".join(shown) + "."


def tip(item: Panel | Dots, point: Point) -> str:
    near = f"{100 * point.y:.1f} % ({100 * point.low:.1f} to {100 * point.high:.1f})"
    return f"{point.arm} {near}" + (f" at {number(point.x)} {item.x_name}" if point.x is not None else "")


def tips(item: Picture) -> dict[str, str]:
    """What hovering shows, by the drawn element's id."""
    if not isinstance(item, (Panel, Dots)):
        return {}
    level = {"tip-full": f"full {100 * item.full.y:.1f} %"} if item.full is not None else {}
    return level | {f"tip-{index}": tip(item, point) for index, point in enumerate(item.points)}


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.3g}"
