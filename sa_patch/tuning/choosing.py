"""From figures to rules: which kernel at which size, and from which length on sparse prefill is faster than full.

A kernel takes the place of the default only where it is faster by more than the readings scatter, and nowhere slower by
that much. Imports nothing that measures.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from sa_patch.kernels.rules import FALLBACK, Steps

FULL = "full"
DefaultAt = Callable[[str, int], str]  # (layout, length) -> the kernel that runs without a rule of this device


@dataclass(frozen=True)
class Reading:
    """Milliseconds of one call: the median, the fastest and the slowest of several, taken in turns with others."""

    ms: float
    low: float
    high: float

    def is_faster(self, other: "Reading") -> bool:
        """Faster by more than the scatter of both."""
        return self.high < other.low


@dataclass(frozen=True)
class Cell:
    """One variant at one length and window, read in turns with full attention.

    Attributes:
        layouts: in which the variant's crossover lies.
        layout: of its pattern, whose kernel is chosen.
        pieces: the pattern has several pieces, each with a size of its own: it says nothing about a kernel's sizes.
        readings: by kernel, and "full".
        refused: the kernels that can't run it here, or failed.
    """

    arm: str
    layouts: tuple[str, ...]
    layout: str
    pieces: bool
    length: int
    window: int
    readings: Mapping[str, Reading]
    refused: frozenset[str] = frozenset()


def chosen(cells: Sequence[Cell], order: Sequence[str], default_at: DefaultAt) -> dict[tuple[str, int], str]:
    """(layout, length) -> the kernel to run there.

    Args:
        order: the kernels that may be taken, the one to be preferred among equals first.
    """
    found = {}
    for layout, length in sorted({(cell.layout, cell.length) for cell in cells if not cell.pieces}):
        here = [c for c in cells if (c.layout, c.length, c.pieces) == (layout, length, False)]
        best = default_at(layout, length)
        for name in order:
            if name != best and _replaces(name, best, here):
                best = name
        found[layout, length] = best
    return found


def _replaces(name: str, other: str, cells: Sequence[Cell]) -> bool:
    """Whether a kernel is faster than another in one of the cells, slower in none, and was read beside it in all.

    What it refuses runs on the fallback.
    """
    faster = False
    for key in {(cell.arm, cell.window) for cell in cells}:
        here = [cell for cell in cells if (cell.arm, cell.window) == key]
        if any(name in cell.refused for cell in here):
            if other == FALLBACK or any(other in cell.refused for cell in here):
                continue  # nothing changes
            return False
        pairs = [(c.readings[name], c.readings[other]) for c in here if name in c.readings and other in c.readings]
        if not pairs or any(theirs.is_faster(mine) for mine, theirs in pairs):
            return False
        faster |= any(mine.is_faster(theirs) for mine, theirs in pairs)
    return faster


def steps(choices: Mapping[int, str], default_at: Callable[[int], str], ends: Iterable[int]) -> Steps:
    """The rule of a layout.

    A choice holds from its length up to the next one that was measured; where it is the default, and below all lengths,
    the default's own steps stay.

    Args:
        choices: length -> kernel.
        ends: where the default changes: the last lengths of its steps.
    """
    lengths = sorted(choices)

    def kernel(length: int) -> str:
        measured = max((at for at in lengths if at <= length), default=None)
        if measured is None or choices[measured] == default_at(measured):
            return default_at(length)
        return choices[measured]

    stops = sorted({*ends, *(length - 1 for length in lengths if length > 1)})
    found: list[tuple[int | None, str]] = [(stop, kernel(stop)) for stop in stops]
    found.append((None, kernel(max([*stops, 0]) + 1)))
    return tuple(step for step, after in zip(found, [*found[1:], (None, "")], strict=True) if step[1] != after[1])


def crossovers(cells: Sequence[Cell], choices: Mapping[tuple[str, int], str]) -> dict[str, tuple[int, int]]:
    """Layout -> (windows, tokens), see `rules.Entry.crossover`; with the kernels that were chosen."""
    found = {}
    for layout in sorted({layout for cell in cells for layout in cell.layouts}):
        faster: dict[tuple[int, int], bool] = {}
        for cell in cells:
            kernel = choices.get((cell.layout, cell.length))
            kernel = FALLBACK if kernel in cell.refused else kernel
            if layout in cell.layouts and kernel is not None and kernel in cell.readings:
                key = cell.window, cell.length
                wins = cell.readings[kernel].is_faster(cell.readings[FULL])
                faster[key] = faster.get(key, True) and wins
        limits = [(window, _limit(faster, window)) for window in sorted({window for window, _ in faster})]
        known = [(window, limit) for window, limit in limits if limit is not None]
        if known and known == limits:  # where one is beyond all lengths, nobody knows
            ratios = [-(-limit // window) for window, limit in known[1:] or known]
            found[layout] = max(ratios), known[0][1]
    return found


def _limit(faster: Mapping[tuple[int, int], bool], window: int) -> int | None:
    """The longest prompt that is not known to be faster: up to the length from which on all that were read are; None
    where the longest is not."""
    lengths = sorted(length for at, length in faster if at == window)
    slower = [length for length in lengths if not faster[window, length]]
    after = [length for length in lengths if not slower or length > slower[-1]]
    return after[0] - 1 if after else None
