"""Owns what a page is made of: sections, tables, charts and text as plain data, and how numbers are written.

Everything here is text that the template escapes; only charts are markup, and chart_svg.py writes those. Imports no
other part of the report.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from sa_eval.results.answer import points

NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Cell:
    """One table cell: `value` sorts it (None sorts last), `style` names a CSS class, `tint` is a share to colour by."""

    text: str
    small: str = ""
    value: float | str | None = None
    style: str = ""
    tint: float | None = None


@dataclass(frozen=True)
class Table:
    """A sortable table. Columns whose name starts with `text:` hold words and stand left; the first one always does."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    sortable: bool = True
    kind = "table"

    @property
    def heads(self) -> list[tuple[str, bool]]:
        return [(name.removeprefix("text:"), name.startswith("text:")) for name in self.columns]


@dataclass(frozen=True)
class Charts:
    """Pictures beside each other under one legend of (mark, label)."""

    images: tuple[Markup, ...]
    legend: tuple[tuple[Markup, str], ...] = ()
    level: bool = False  # the legend explains the dashed line of full attention
    scale: bool = False  # the legend explains the heatmaps' colour
    kind = "charts"

    @property
    def across(self) -> int:
        """How many stand beside each other on a wide screen: no last row of a single one where it can be helped."""
        count = len(self.images)
        return min(4, count) if count < 5 else 3 if count in (5, 6, 9) else 4


@dataclass(frozen=True)
class Heading:
    text: str
    kind = "heading"


@dataclass(frozen=True)
class Text:
    text: str
    kind = "text"


@dataclass(frozen=True)
class Pre:
    """Preformatted text with its title."""

    title: str
    text: str
    kind = "pre"


@dataclass(frozen=True)
class Folded:
    """Parts behind a line that opens them; paper shows them anyway."""

    summary: str
    parts: tuple[Any, ...]
    open: bool = False
    kind = "folded"


@dataclass(frozen=True)
class Section:
    """One heading of the page with what stands below it."""

    name: str
    title: str
    intro: str
    parts: tuple[Any, ...]


def words(text: Any, small: str = "") -> Cell:
    return Cell(str(text), small=small, value=str(text))


def share(cell: dict[str, Any], *, tinted: bool = False) -> Cell:
    """An accuracy in % over its interval."""
    value = cell["accuracy"]
    small = span(cell["low"], cell["high"], sign=False)
    return Cell(points(value, sign=False), small, value, tint=value if tinted else None)


def difference(cell: dict[str, Any]) -> Cell:
    """A paired difference in points over its interval, marked where it is significant after correction."""
    if "difference" not in cell:
        return Cell("")
    value = cell["difference"]
    style = ("better" if value > 0 else "worse") if cell["significant"] else ""
    return Cell(points(value), span(cell["difference_low"], cell["difference_high"]), value, style)


def span(low: float, high: float, *, sign: bool = True) -> str:
    return f"{points(low, sign=sign)}{' to ' if sign else chr(0x2013)}{points(high, sign=sign)}"


def amount(value: float | None, form: str, small: str = "") -> Cell:
    """A measured number, or the words that it was not measured."""
    if value is None:
        return Cell(NOT_MEASURED, style="absent")
    text = f"{value:{form}}".replace("%", "\u00a0%")
    zero = not re.search("[1-9]", text)
    return Cell(text.lstrip("+-") if zero else text.replace("-", "\u2212"), small, value)


def chance(value: float | None) -> str:
    """A p-value; words from 0.001 down."""
    return "" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def length_name(length: Any) -> str:
    return "the tasks' own lengths" if length is None else "all lengths" if length == "all" else f"{length:,} tokens"


def rows_of(rows: Sequence[Sequence[Cell]]) -> tuple[tuple[Cell, ...], ...]:
    return tuple(tuple(row) for row in rows)
