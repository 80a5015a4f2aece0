"""Tables of text for a terminal, for every command: as wide as it is, and what is identical in one line.

Imports neither torch nor what only statistics need.
"""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Sequence
from typing import Protocol, TypeVar

WIDTH = 118  # where the terminal does not say how wide it is
NARROWEST = 30
NAMED = 8  # differences of versions and the like that are printed; --json has all
DASH = "\u2013"


def columns() -> int:
    """How wide text may be here: $COLUMNS, or the terminal's width, at most WIDTH."""
    return max(NARROWEST, min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns))


class Compared(Protocol):
    """An arm at a length in two results, which may be the same in both."""

    @property
    def name(self) -> str: ...

    @property
    def identical(self) -> bool: ...


Pair = TypeVar("Pair", bound=Compared)


def identical(pairs: Sequence[Pair]) -> tuple[list[str], list[Pair]]:
    """What is identical in both results, in one line (none where nothing is), and the other pairs."""
    same, rest = [pair for pair in pairs if pair.identical], [pair for pair in pairs if not pair.identical]
    names = "all" if not rest else "; ".join(pair.name for pair in same)
    return [f"identical: {len(same)} of {len(pairs)} arms and lengths ({names})"] if same else [], rest


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Columns under a header, the first to the left; a table wider than the terminal goes on below, with its first."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    room = columns() - widths[0]
    packed = _packed(widths, room)
    while len(_packed(widths, room - 1)) == len(packed) > 1:  # no lone last column where it can be helped
        room -= 1
        packed = _packed(widths, room)
    return "\n\n".join(_lines(rows, widths, numbers) for numbers in packed)


def _packed(widths: Sequence[int], room: int) -> list[list[int]]:
    """Columns from the second on, as many beside each other as there is room for."""
    packed: list[list[int]] = [[]]
    for number in range(1, len(widths)):
        if packed[-1] and sum(2 + widths[other] for other in (*packed[-1], number)) > room:
            packed.append([])
        packed[-1].append(number)
    return packed


def _lines(rows: Sequence[Sequence[str]], widths: Sequence[int], numbers: Sequence[int]) -> str:
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(row[number].rjust(widths[number]) for number in numbers)]).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], DASH * max(map(len, lines)), *lines[1:]])


def sides(a: str, b: str, different: list[str]) -> str:
    """The two results of a comparison, and what they differ in besides their numbers."""
    lines = [f"differ in {text}" for text in different[:NAMED]] or ["alike in model, versions, code and machine"]
    lines += [f"... and {len(different) - NAMED} more"] if len(different) > NAMED else []
    filled = (textwrap.fill(line, columns(), initial_indent="   ", subsequent_indent="     ") for line in lines)
    return "\n".join([f"A  {a}", f"B  {b}", *filled])
