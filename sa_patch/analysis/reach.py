"""Reach: which tokens a set of tokens is connected to by one layer, in O(tokens) memory per set, never n x n.

A token of a set that is earlier than a query and among its keys reaches it. Among the tokens whose ranks are near the
query's, only the earliest one of the set has to be looked at: the set reaches the query exactly when that one does not
come after it. So a step through a permuted window is a minimum over windows of ranks, O(tokens log(window)), causality
included; buckets, sinks, local windows and dense tails are minima over other groups of tokens. Imports torch only.
"""

from dataclasses import dataclass
from functools import reduce
from typing import Literal

import torch
from torch import Tensor

from sa_patch.patterns import Band, Blocks, Dense, Pattern, Pieces, Scattered

Direction = Literal["forward", "backward", "both"]
_FAR = 2**31 - 1  # a position that no token has


@dataclass(frozen=True, eq=False, kw_only=True)
class Together(Pattern):
    """What a layer of several branches shows: a pair that any of them shows. For analysis only; no kernel runs it.

    Attributes:
        parts: one pattern per branch.
    """

    parts: tuple[Pattern, ...]

    @classmethod
    def of(cls, parts: list[Pattern]) -> Pattern:
        """The branches as one pattern; a single branch is itself."""
        first = parts[0]
        return first if len(parts) == 1 else cls(length=first.length, query_len=first.query_len, parts=tuple(parts))

    def visible(self, queries: Tensor | None = None) -> Tensor:
        return reduce(torch.logical_or, [part.visible(queries) for part in self.parts])


def step(pattern: Pattern, sets: Tensor, direction: Direction) -> Tensor:
    """What sets of tokens reach through one layer. A token always reaches itself.

    Args:
        pattern: a whole prompt's, one that does not depend on content.
        sets: bool [tokens, sets].
        direction: "forward": the queries that see a token of the set; "backward": the keys that a token of the set
            sees; "both": either, the pattern as an undirected graph.

    Returns:
        bool [tokens, sets]

    Raises:
        ValueError: for a pattern whose keys are chosen by content.
    """
    found = sets.clone()
    for piece in pieces_of(pattern):
        if direction != "backward":
            found[piece.first : piece.length] |= _forward(piece, sets[: piece.length])
        if direction != "forward":
            found[: piece.length] |= _backward(piece, sets[: piece.length])
    return found


def pieces_of(pattern: Pattern) -> tuple[Pattern, ...]:
    """The patterns whose union a pattern is: branches, and stretches of queries."""
    if isinstance(pattern, Together):
        return tuple(piece for part in pattern.parts for piece in pieces_of(part))
    return pattern.pieces if isinstance(pattern, Pieces) else (pattern,)


def _forward(piece: Pattern, sets: Tensor) -> Tensor:
    """bool [query_len, sets]: queries of the piece that see a token of the set."""
    position = torch.arange(piece.length, dtype=torch.int32)[:, None]
    marked = torch.where(sets, position, _FAR)
    earliest = _own_least(piece, marked)
    if not piece.covers_all:
        if piece.local > 1:
            earliest = torch.minimum(earliest, _window_least(marked, piece.local, circular=False))
        if piece.sinks:
            earliest = torch.minimum(earliest, marked[: piece.sinks].amin(0))
        if piece.tail:
            earliest[-piece.tail :] = marked.amin(0)
    found = (earliest <= position)[piece.first :]
    if isinstance(piece, Scattered):
        query = torch.arange(piece.first, piece.length)
        for drawn in piece.keys.long().unbind(1):
            found |= sets[torch.where(drawn < 0, query, drawn)]
    return found


def _backward(piece: Pattern, sets: Tensor) -> Tensor:
    """bool [length, sets]: keys that a query of the set sees; only the piece's own queries look."""
    position = torch.arange(piece.length, dtype=torch.int32)[:, None]
    marked = torch.where(sets, -position, _FAR)  # negative: the least is the latest
    marked[: piece.first] = _FAR
    latest = _own_least(piece, marked)
    if not piece.covers_all:
        if piece.local > 1:
            latest = torch.minimum(latest, _window_least(marked, piece.local, circular=False))
        if piece.sinks:
            latest[: piece.sinks] = marked.amin(0)
        if piece.tail:
            latest = torch.minimum(latest, marked[-piece.tail :].amin(0))
    found = latest <= -position
    if isinstance(piece, Scattered):
        query = torch.arange(piece.first, piece.length)
        seen = torch.zeros(sets.shape, dtype=torch.int32)
        looking = sets[piece.first :].int()
        for drawn in piece.keys.long().unbind(1):
            seen.index_add_(0, torch.where(drawn < 0, query, drawn), looking)
        found |= seen > 0
    return found


def _own_least(piece: Pattern, marked: Tensor) -> Tensor:
    """The least mark among the tokens that the pattern's own part puts together with a token: int32 [length, sets]."""
    if piece.covers_all or isinstance(piece, Dense):
        return marked.amin(0).expand_as(marked).clone()
    if isinstance(piece, Scattered):
        return torch.full_like(marked, _FAR)
    if isinstance(piece, Band):
        ranked = _ranked(marked, piece.order)
        return _unranked(_window_least(ranked, piece.width, piece.circular), piece.order, len(marked))
    if isinstance(piece, Blocks) and piece.selected is None:
        ranked = _ranked(marked, piece.order)
        short = -len(ranked) % piece.block_size
        full = torch.nn.functional.pad(ranked, (0, 0, 0, short), value=_FAR)
        least = full.view(-1, piece.block_size, full.shape[1]).amin(1).repeat_interleave(piece.block_size, dim=0)
        return _unranked(least, piece.order, len(marked))
    raise ValueError(f"the keys of a {type(piece).__name__} pattern depend on the content")


def _ranked(marked: Tensor, order: Tensor | None) -> Tensor:
    """Marks by rank; tokens still to come are far."""
    if order is None:
        return marked
    to_come = order.numel() - len(marked)
    return torch.nn.functional.pad(marked, (0, 0, 0, to_come), value=_FAR)[order]


def _unranked(least: Tensor, order: Tensor | None, length: int) -> Tensor:
    if order is None:
        return least[:length]
    placed = torch.empty_like(least[: order.numel()])
    placed[order] = least[: order.numel()]
    return placed[:length]


def _window_least(values: Tensor, width: int, circular: bool) -> Tensor:
    """The least of the values whose row differs by less than `width`: as `values`, by doubling windows."""
    reach = min(width, len(values)) - 1
    if circular:
        padded = torch.cat([values[len(values) - reach :], values, values[:reach]])
    else:
        padded = torch.nn.functional.pad(values, (0, 0, reach, reach), value=_FAR)
    least, span, rows = padded, 1, 2 * reach + 1
    while 2 * span <= rows:
        least, span = torch.minimum(least[:-span], least[span:]), 2 * span
    return torch.minimum(least[: len(values)], least[rows - span : rows - span + len(values)])


def sees(pattern: Pattern, query: Tensor, key: Tensor) -> Tensor:
    """Whether queries see keys, pair by pair: bool, as `query` and `key` (int64, of one shape), key <= query.

    Raises:
        ValueError: for a pattern whose keys are chosen by content.
    """
    found = key == query
    for piece in pieces_of(pattern):
        own = (query >= piece.first) & (query < piece.length)
        found[own] |= _sees(piece, query[own], key[own])
    return found


def _sees(piece: Pattern, query: Tensor, key: Tensor) -> Tensor:
    if piece.covers_all or isinstance(piece, Dense):
        return torch.ones_like(query, dtype=torch.bool)
    opened = (key < piece.sinks) | (query - key < piece.local) | (query >= piece.length - piece.tail)
    if isinstance(piece, Scattered):
        return opened | (piece.keys[query - piece.first] == key[..., None]).any(-1)
    if isinstance(piece, Band):
        ranks = piece.ranks(query.device)
        distance = (ranks[query] - ranks[key]).abs()
        if piece.circular:
            distance = torch.minimum(distance, piece.horizon - distance)
        return opened | (distance < piece.width)
    if isinstance(piece, Blocks) and piece.selected is None:
        ranks = Band(length=piece.length, query_len=piece.query_len, width=1, order=piece.order).ranks(query.device)
        return opened | (ranks[query] // piece.block_size == ranks[key] // piece.block_size)
    raise ValueError(f"the keys of a {type(piece).__name__} pattern depend on the content")
