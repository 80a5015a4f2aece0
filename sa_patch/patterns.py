"""Patterns: who sees whom, as data. The closed set every kernel executes: Dense, Band, Blocks.

A pattern covers one sequence of `length` keys whose queries are the last `query_len` positions. All positions here are
logical (real tokens only). On top of its own part every pattern may open sinks, a local window and a dense tail.
Imports torch only.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sa_patch.randomness import inverse


def triangle(count: int) -> int:
    """1 + 2 + ... + count."""
    return count * (count + 1) // 2


def window_pairs(length: int, window: int) -> int:
    """Pairs of causal sliding-window attention: n w - w (w - 1) / 2, the unit all budgets are measured in."""
    window = min(window, length)
    return length * window - triangle(window - 1)


def extra_pairs(length: int, sinks: int, local: int) -> int:
    """Pairs strictly below the diagonal that sinks (j < sinks) or the local window (i - j < local) open."""
    reach = max(min(local, length), 1)
    beyond = [max(0, length - key - reach) for key in range(min(sinks, length))]
    return window_pairs(length, reach) - length + sum(beyond)


@dataclass(frozen=True, eq=False, kw_only=True)
class Pattern:
    """What is common to all patterns.

    Attributes:
        length: number of keys, n.
        query_len: the queries are positions n - query_len .. n - 1.
        sinks: the first `sinks` keys are visible to every later query.
        local: the last `local` keys (the query's own included) are visible.
        tail: the last `tail` queries see every earlier key.
    """

    length: int
    query_len: int
    sinks: int = 0
    local: int = 0
    tail: int = 0

    @property
    def covers_all(self) -> bool:
        """True when the pattern is plain causal attention, whatever its kind."""
        return self.tail >= self.query_len or max(self.local, self.sinks) >= self.length or self._own_covers_all()

    def _own_covers_all(self) -> bool:
        raise NotImplementedError

    def _own_visible(self, queries: Tensor) -> Tensor:
        """The own part for the given query positions, causality aside: bool [..., len(queries), length]."""
        raise NotImplementedError

    def _own_pairs(self) -> float:
        """Pairs of the own part over all `length` queries, causality included."""
        raise NotImplementedError

    def _own_extra_overlap(self) -> float:
        """Pairs strictly below the diagonal in the own part and also in sinks or local, over all queries."""
        raise NotImplementedError

    def visible(self, queries: Tensor | None = None) -> Tensor:
        """The mask itself, O(query_len x length) memory: for people, tests and short sequences.

        Args:
            queries: query positions, int64 [q]; all the pattern's queries when None.

        Returns:
            bool [q, length], or [batch, heads, q, length] where the pattern depends on content.
        """
        if queries is None:
            queries = torch.arange(self.length - self.query_len, self.length, device=self._device())
        own = self._own_visible(queries)
        row, key = queries[:, None], torch.arange(self.length, device=queries.device)
        opened = (key < self.sinks) | (row - key < self.local) | (row >= self.length - self.tail)
        return (own | opened) & (key <= row)

    def count(self) -> int:
        """Number of visible pairs over all `length` queries: exact, or the mean over batch and heads, rounded.

        Raises:
            ValueError: when query_len < length (a budget is a property of a whole prompt).
        """
        if self.query_len != self.length:
            raise ValueError(f"count() needs a whole sequence, got {self.query_len} queries for {self.length} keys")
        if self.covers_all:
            return triangle(self.length)
        pairs = self._own_pairs() + extra_pairs(self.length, self.sinks, self.local) - self._own_extra_overlap()
        if not self.tail:
            return round(pairs)
        rows = torch.arange(self.length - self.tail, self.length, device=self._device())
        sparse = replace(self, tail=0)
        masked = sum(_mean_count(sparse.visible(chunk)) for chunk in rows.split(256))
        return round(pairs - masked + int((rows + 1).sum()))

    def _device(self) -> torch.device:
        return torch.device("cpu")


def _mean_count(mask: Tensor) -> float:
    return mask.sum().item() / max(1, mask[..., 0, 0].numel())


def _extra_indices(length: int, sinks: int, local: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """(query, key) positions of the pairs `extra_pairs` counts, a diagonal or a sink at a time: O(length) memory."""
    position = torch.arange(length, device=device)
    reach = max(min(local, length), 1)
    for distance in range(1, reach):
        yield position[distance:], position[:-distance]
    for sink in range(min(sinks, length - reach)):
        queries = position[sink + reach :]
        yield queries, torch.full_like(queries, sink)


@dataclass(frozen=True, eq=False, kw_only=True)
class Dense(Pattern):
    """Causal attention: every query sees every earlier key."""

    def _own_covers_all(self) -> bool:
        return True

    def _own_visible(self, queries: Tensor) -> Tensor:
        return torch.ones(queries.numel(), self.length, dtype=torch.bool, device=queries.device)

    def _own_pairs(self) -> float:
        return triangle(self.length)

    def _own_extra_overlap(self) -> float:
        return extra_pairs(self.length, self.sinks, self.local)


@dataclass(frozen=True, eq=False, kw_only=True)
class Band(Pattern):
    """Keys whose rank differs from the query's by less than `width`, in a given order of the tokens.

    Attributes:
        width: keys on each side, the query's own included.
        order: int64 [length], `order[rank] = position`; None is the identity (a sliding window).
        circular: ranks form a ring.
    """

    width: int
    order: Tensor | None = None
    circular: bool = False

    def _device(self) -> torch.device:
        return torch.device("cpu") if self.order is None else self.order.device

    def _own_covers_all(self) -> bool:
        return self.width >= self.length or (self.circular and self.width > self.length // 2)

    def _near(self, query_rank: Tensor, key_rank: Tensor) -> Tensor:
        distance = (query_rank - key_rank).abs()
        if self.circular:
            distance = torch.minimum(distance, self.length - distance)
        return distance < self.width

    def _own_visible(self, queries: Tensor) -> Tensor:
        ranks = torch.arange(self.length, device=queries.device) if self.order is None else inverse(self.order)
        return self._near(ranks[queries][:, None], ranks)

    def _own_pairs(self) -> float:
        return band_pairs(self.length, self.width, self.circular)

    def _own_extra_overlap(self) -> float:
        ranks = torch.arange(self.length) if self.order is None else inverse(self.order)
        extras = _extra_indices(self.length, self.sinks, self.local, ranks.device)
        return sum(int(self._near(ranks[query], ranks[key]).sum()) for query, key in extras)


def band_pairs(length: int, width: int, circular: bool = False) -> int:
    """Pairs of a Band, whatever its order: each unordered pair of near ranks is causal one way, plus the diagonal."""
    reach = min(width, length) - 1
    if not circular:
        return window_pairs(length, reach + 1)
    return length * (reach + 1) if 2 * reach < length else triangle(length)


@dataclass(frozen=True, eq=False, kw_only=True)
class Blocks(Pattern):
    """The tokens in a given order cut into runs of `block_size`: own run, causal, plus selected whole earlier runs.

    Attributes:
        block_size: tokens per run; the last run may be shorter.
        order: int64 [length], `order[rank] = position`, positions ascending inside each run; None is the identity.
        selected: int64 [batch, heads, query_len, k], indices of further runs, -1 where there is none; only with the
            identity order, where every token of an earlier run precedes the query.
    """

    block_size: int
    order: Tensor | None = None
    selected: Tensor | None = None

    def _device(self) -> torch.device:
        some = self.order if self.order is not None else self.selected
        return torch.device("cpu") if some is None else some.device

    def _own_covers_all(self) -> bool:
        chosen = 0 if self.selected is None else self.selected.shape[-1]
        return self.block_size * (chosen + 1) >= self.length

    def _run_of(self, device: torch.device) -> Tensor:
        ranks = torch.arange(self.length, device=device) if self.order is None else inverse(self.order)
        return ranks // self.block_size

    def _own_visible(self, queries: Tensor) -> Tensor:
        run = self._run_of(queries.device)
        mask = run[queries][:, None] == run
        if self.selected is None:
            return mask
        chosen = self.selected[:, :, queries - (self.length - self.query_len)]
        num_runs = -(-self.length // self.block_size)
        picked = torch.zeros(*chosen.shape[:-1], num_runs + 1, dtype=torch.bool, device=chosen.device)
        picked.scatter_(-1, torch.where(chosen < 0, num_runs, chosen), True)
        return mask | picked[..., run]

    def _own_pairs(self) -> float:
        pairs = run_pairs(self.length, self.block_size)
        if self.selected is None:
            return pairs
        batch, heads = self.selected.shape[:2]
        return pairs + int((self.selected >= 0).sum()) * self.block_size / (batch * heads)

    def _own_extra_overlap(self) -> float:
        run, overlap = self._run_of(self._device()), 0.0
        for query, key in _extra_indices(self.length, self.sinks, self.local, run.device):
            overlap += int((run[query] == run[key]).sum())
            if self.selected is not None:
                batch, heads = self.selected.shape[:2]
                overlap += int((run[key][:, None] == self.selected[:, :, query]).sum()) / (batch * heads)
        return overlap


def run_pairs(length: int, run_size: int) -> int:
    """Causal pairs inside consecutive runs of `run_size` tokens."""
    full, rest = divmod(length, run_size)
    return full * triangle(run_size) + triangle(rest)
