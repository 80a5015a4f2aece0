"""What a page is made of: sections, tables, charts and text as plain data, and how numbers are written.

Everything here is text that the template escapes; only charts are markup, and svg.py writes those. Imports no other
module of the page.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from markupsafe import Markup

from sa_eval.results import answer
from sa_eval.results.answer import points
from sa_eval.results.types import Cell, Difference, Length

NOT_MEASURED = "not measured"
TOO_FEW = "too few documents"


class Block(Protocol):
    """Something that stands in a section; `kind` says to the template what it is."""

    @property
    def kind(self) -> str: ...


@dataclass(frozen=True)
class Field:
    """One field: `value` sorts it (None sorts last), `style` names a CSS class, `tint` is a share to colour by."""

    text: str
    small: str = ""
    value: float | str | None = None
    style: str = ""
    tint: float | None = None


@dataclass(frozen=True)
class Column:
    """A column's head. Words stand left, numbers right; a phone leaves out what is `extra`."""

    name: str
    text: bool = False
    extra: bool = False


@dataclass(frozen=True)
class Table:
    """A table with its caption; the first column always stands left. Sorted by a click on a head, unless it may not."""

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Field, ...], ...]
    sortable: bool = True
    kind = "table"

    @property
    def narrowed(self) -> bool:
        """Whether a phone leaves something out."""
        return any(column.extra for column in self.columns)


def columns(*names: str | Column) -> tuple[Column, ...]:
    return tuple(name if isinstance(name, Column) else Column(name) for name in names)


def text(name: str) -> Column:
    return Column(name, text=True)


def extra(name: str) -> Column:
    return Column(name, extra=True)


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
    """Blocks behind a line that opens them; paper shows them anyway."""

    summary: str
    blocks: tuple[Block, ...]
    open: bool = False
    kind = "folded"


@dataclass(frozen=True)
class Section:
    """One heading of the page with what stands below it."""

    name: str
    title: str
    intro: str
    blocks: tuple[Block, ...]


def words(text: object, small: str = "") -> Field:
    return Field(str(text), small=small, value=str(text))


def share(cell: Cell, *, tinted: bool = False) -> Field:
    """An accuracy in % over its interval."""
    small = span(cell.low, cell.high, sign=False)
    return Field(points(cell.accuracy, sign=False), small, cell.accuracy, tint=cell.accuracy if tinted else None)


def difference(found: Difference | None) -> Field:
    """A paired difference in points over its corrected interval, marked where it is significant."""
    if found is None:
        return Field("")
    interval = span(found.corrected_low, found.corrected_high) if found.enough else TOO_FEW
    return Field(points(found.value), interval, found.value, found.verdict)


def span(low: float, high: float, *, sign: bool = True) -> str:
    """Both ends of an interval: a dash between shares, words between signed numbers."""
    return answer.span(low, high, sign=sign, between=" to " if sign else "\u2013")


def amount(value: float | None, form: str, small: str = "") -> Field:
    """A measured number, or the words that it was not measured."""
    if value is None:
        return Field(NOT_MEASURED, style="absent")
    text = f"{value:{form}}".replace("%", "\u00a0%")
    zero = not re.search("[1-9]", text)
    return Field(text.lstrip("+-") if zero else text.replace("-", "\u2212"), small, value)


def chance(value: float | None) -> str:
    """A p-value; words from 0.001 down."""
    return "" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def length_name(length: Length) -> str:
    return "the tasks' own lengths" if length is None else "all lengths" if length == "all" else f"{length:,} tokens"


def rows_of(rows: Sequence[Sequence[Field]]) -> tuple[tuple[Field, ...], ...]:
    return tuple(tuple(row) for row in rows)
