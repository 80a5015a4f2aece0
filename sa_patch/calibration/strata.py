"""The passages a plan is calibrated on: pieces of the user's text, and two kinds of passages made from it.

Fluency on text needs mostly what stands nearby. So that a plan which keeps only that is seen, a needle stratum repeats
an early snippet at the end (its continuation has to be found), and an aggregation stratum is a sequence of a few
snippets, some more frequent than others (what comes next follows from their counts over the whole passage).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Stratum = Literal["text", "needle", "aggregation"]
STRATA: tuple[Stratum, ...] = ("text", "needle", "aggregation")
SNIPPET, CUE = 48, 12  # tokens of a needle, and how many of its repetition come before the scored ones
UNIT, KINDS = 12, 8  # tokens of a snippet that is counted, and how many there are
LEAST_TOKENS = 256


@dataclass(frozen=True)
class Passage:
    """Token ids, and the positions whose next-token distribution is compared.

    Attributes:
        source: which text and where, for people.
    """

    stratum: Stratum
    ids: tuple[int, ...]
    scored: tuple[int, ...]
    source: str


@dataclass(frozen=True)
class Split:
    """Passages by use. Those of `report` are not looked at before the plan is final."""

    fit: tuple[Passage, ...]
    choose: tuple[Passage, ...]
    report: tuple[Passage, ...]


def split(
    texts: Sequence[tuple[str, Sequence[int]]], length: int, counts: tuple[int, int, int], window: int, seed: int = 0
) -> Split:
    """Passages of `length` tokens from texts of token ids, evenly over the texts.

    Args:
        texts: (name, token ids).
        counts: passages of every stratum to fit, choose and report with.
        window: positions that see everything anyway are not scored.
        seed: decides which pieces are used, and the needles' places.

    Raises:
        ValueError: when the texts are too short for that many passages, or the passages for the window.
    """
    if length < LEAST_TOKENS or length < 2 * window:
        raise ValueError(
            f"passages of {length} tokens are too short: at least {LEAST_TOKENS}, and twice the window of {window}"
        )
    needed = 2 * sum(counts)  # one piece for text, one for what is made from it
    pieces = []
    for name, ids in texts:
        pieces.append([(f"{name} from token {start}", ids[start : start + length]) for start in _starts(ids, length)])
    available = sum(map(len, pieces))
    if available < needed:
        raise ValueError(
            f"calibration needs {needed} passages of {length} tokens, the texts hold {available}: give more text, or "
            "fewer or shorter passages"
        )
    source = random.Random(seed)
    for some in pieces:
        source.shuffle(some)
    turns = [piece for row in range(max(map(len, pieces))) for some in pieces for piece in some[row : row + 1]]
    made: list[list[Passage]] = []
    for count in counts:
        used, turns = turns[: 2 * count], turns[2 * count :]
        made.append([_text(piece, window) for piece in used[:count]])
        made[-1] += [_needle(piece, source) for piece in used[count:]]
        made[-1] += [_aggregation(piece, source) for piece in used[count:]]
    return Split(*(tuple(some) for some in made))


def _starts(ids: Sequence[int], length: int) -> range:
    return range(0, len(ids) - length + 1, length)


def _text(piece: tuple[str, Sequence[int]], window: int) -> Passage:
    name, ids = piece
    return Passage("text", tuple(ids), tuple(range(window, len(ids) - 1)), name)


def _needle(piece: tuple[str, Sequence[int]], source: random.Random) -> Passage:
    """The end repeats a snippet from the first three quarters; scored is the repetition after its first tokens."""
    name, ids = piece
    body = list(ids[: len(ids) - SNIPPET])
    start = source.randrange(len(body) * 3 // 4)
    scored = range(len(body) + CUE - 1, len(ids) - 1)
    return Passage("needle", (*body, *body[start : start + SNIPPET]), tuple(scored), f"{name}, needle at {start}")


def _aggregation(piece: tuple[str, Sequence[int]], source: random.Random) -> Passage:
    """Snippets in random order, the k-th as often as 1 / k; scored is where the next one begins, in the second half."""
    name, ids = piece
    starts = source.sample(range(0, len(ids) - UNIT, UNIT), KINDS)
    weights = [1 / (kind + 1) for kind in range(KINDS)]
    order = source.choices(range(KINDS), weights, k=-(-len(ids) // UNIT))
    body = [token for kind in order for token in ids[starts[kind] : starts[kind] + UNIT]][: len(ids)]
    begins = [start for start in range(UNIT, len(body), UNIT) if start > len(body) // 2]
    scored = [position for start in begins for position in (start - 1, start) if position < len(body) - 1]
    return Passage("aggregation", tuple(body), tuple(scored), f"{name}, snippets counted")
