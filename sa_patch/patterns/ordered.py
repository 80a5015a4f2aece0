"""Patterns that follow an order of the tokens: bands around a token's rank, and runs of consecutive ranks."""

from collections.abc import Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

from sa_patch.counting import band_pairs, run_pairs
from sa_patch.patterns.base import Pattern, extra_indices
from sa_patch.randomness import inverse


@dataclass(frozen=True, eq=False, kw_only=True)
class Band(Pattern):
    """Keys whose rank differs from the query's by less than `width`, in a given order of the tokens.

    Attributes:
        width: |rank(i) - rank(j)| < width.
        order: int64 [horizon], `order[rank] = position`, horizon >= length; None is the identity (a sliding window).
        circular: the last rank is next to the first.
        source: what the order was made from, so that equal sources have equal orders; the key under which what is made
            from the order is cached. None: nothing is cached.
    """

    width: int
    order: Tensor | None = None
    circular: bool = False
    source: Hashable = None

    def _device(self) -> torch.device:
        return torch.device("cpu") if self.order is None else self.order.device

    @property
    def horizon(self) -> int:
        """How many tokens have ranks: above `length` where later tokens are ranked already."""
        return self.length if self.order is None else self.order.numel()

    @property
    def own_key(self) -> tuple | None:
        """Patterns of equal tuples have equal own parts; None where the source of the order is not known."""
        return _own_key(self, self.width, self.circular)

    def _own_covers_all(self) -> bool:
        return self.width >= self.horizon or (self.circular and self.width > self.horizon // 2)

    def ranks(self, device: torch.device) -> Tensor:
        """The rank of every token of the horizon: int64 [horizon]."""
        return torch.arange(self.length, device=device) if self.order is None else inverse(self.order)

    def _near(self, query_rank: Tensor, key_rank: Tensor) -> Tensor:
        distance = (query_rank - key_rank).abs()
        if self.circular:
            distance = torch.minimum(distance, self.horizon - distance)
        return distance < self.width

    def _own_visible(self, queries: Tensor) -> Tensor:
        ranks = self.ranks(queries.device)
        return self._near(ranks[queries][:, None], ranks[: self.length])

    def _own_pairs(self) -> float:
        if self.order is None or self.query_len == self.horizon:
            return band_pairs(self.length, self.width, self.circular) - (
                band_pairs(self.first, self.width) if self.order is None and self.first else 0
            )
        # Of two near tokens the later one is the query: count those that are queries of this pattern.
        pairs, order = self.query_len, self.order
        wrapped = torch.cat([order, order[: self.width - 1]]) if self.circular else order
        for distance in range(1, self.width):
            near = wrapped[distance : distance + order.numel()]
            later = torch.maximum(order[: near.numel()], near)
            pairs += int(((later >= self.first) & (later < self.length)).sum())
        return pairs

    def _own_extra_overlap(self) -> float:
        ranks = self.ranks(self._device())
        return sum(int(self._near(ranks[query], ranks[key]).sum()) for query, key in extra_indices(self))


@dataclass(frozen=True, eq=False, kw_only=True)
class Blocks(Pattern):
    """The tokens in a given order, cut into runs of `block_size`. A query i sees the keys j <= i of its own run, and
    selected earlier runs whole.

    Attributes:
        block_size: tokens per run; the last run may be shorter.
        order: int64 [horizon], `order[rank] = position`, horizon >= length, positions ascending inside each run; None
            is the identity.
        selected: int64 [batch, heads, query_len, k], indices of further runs, -1 where there is none; only with the
            identity order, where every token of an earlier run precedes the query.
        source: as of a `Band`.
    """

    block_size: int
    order: Tensor | None = None
    selected: Tensor | None = None
    source: Hashable = None

    def _device(self) -> torch.device:
        some = self.order if self.order is not None else self.selected
        return torch.device("cpu") if some is None else some.device

    @property
    def own_key(self) -> tuple | None:
        """Patterns of equal tuples have equal own parts but for `selected`; None where the source is not known."""
        return _own_key(self, self.block_size)

    def _own_covers_all(self) -> bool:
        if self.order is not None:
            return self.block_size >= self.order.numel()
        chosen = 0 if self.selected is None else self.selected.shape[-1]
        return self.block_size * (chosen + 1) >= self.length

    def _run_of(self, device: torch.device) -> Tensor:
        ranks = torch.arange(self.length, device=device) if self.order is None else inverse(self.order)
        return ranks[: self.length] // self.block_size

    def _own_visible(self, queries: Tensor) -> Tensor:
        run = self._run_of(queries.device)
        mask = run[queries][:, None] == run
        if self.selected is None:
            return mask
        chosen = self.selected[:, :, queries - self.first]
        num_runs = -(-self.length // self.block_size)
        picked = torch.zeros(*chosen.shape[:-1], num_runs + 1, dtype=torch.bool, device=chosen.device)
        picked.scatter_(-1, torch.where(chosen < 0, num_runs, chosen), True)
        return mask | picked[..., run]

    def _own_pairs(self) -> float:
        if self.order is None:
            pairs = run_pairs(self.length, self.block_size) - run_pairs(self.first, self.block_size)
        else:
            # Positions ascend inside a run: a token sees the slots up to its own.
            slots = inverse(self.order)[self.first : self.length] % self.block_size
            pairs = int((slots + 1).sum())
        if self.selected is None:
            return pairs
        batch, heads = self.selected.shape[:2]
        return pairs + int((self.selected >= 0).sum()) * self.block_size / (batch * heads)

    def _own_extra_overlap(self) -> float:
        run, overlap = self._run_of(self._device()), 0.0
        for query, key in extra_indices(self):
            overlap += int((run[query] == run[key]).sum())
            if self.selected is not None:
                batch, heads = self.selected.shape[:2]
                chosen = self.selected[:, :, query - self.first]
                overlap += int((run[key][:, None] == chosen).sum()) / (batch * heads)
        return overlap


def _own_key(pattern: Band | Blocks, *sizes: int) -> tuple | None:
    if pattern.order is None:
        return pattern.length, pattern.query_len, None, *sizes
    return None if pattern.source is None else (pattern.length, pattern.query_len, pattern.source, *sizes)
