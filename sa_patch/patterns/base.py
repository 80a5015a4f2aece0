"""What is common to all patterns, and full attention."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sa_patch.counting import extra_pairs, triangle


@dataclass(frozen=True, eq=False, kw_only=True)
class Pattern:
    """What is common to all patterns.

    Attributes:
        length: number of keys, n.
        query_len: the queries are positions n - query_len .. n - 1.
        sinks: the first `sinks` keys are visible to every later query.
        local: the last `local` keys (the query's own included) are visible.
        tail: the last `tail` queries see every earlier key.
        weight: the scores of sampled keys are raised by weight * log(N / k). A query always sees itself, sinks and
            local window; of the N other earlier keys it sees k, the sampled ones.
    """

    length: int
    query_len: int
    sinks: int = 0
    local: int = 0
    tail: int = 0
    weight: float = 0.0

    @property
    def first(self) -> int:
        """The position of the first query."""
        return self.length - self.query_len

    @property
    def covers_all(self) -> bool:
        """True when the pattern is plain causal attention, whatever its kind."""
        return self.tail >= self.query_len or max(self.local, self.sinks) >= self.length or self._own_covers_all()

    def _own_covers_all(self) -> bool:
        raise NotImplementedError

    def _own_visible(self, queries: Tensor) -> Tensor:
        """The own part at these query positions: bool [..., len(queries), length]; later keys may be True."""
        raise NotImplementedError

    def _own_pairs(self) -> float:
        """Pairs (i, j), j <= i, of the own part over the pattern's queries."""
        raise NotImplementedError

    def _own_extra_overlap(self) -> float:
        """Pairs (i, j), j < i, of the pattern's queries that both the own part and sinks or local window show."""
        raise NotImplementedError

    def visible(self, queries: Tensor | None = None) -> Tensor:
        """The mask, in O(query_len x length) memory: for people, tests and short sequences.

        Args:
            queries: query positions, int64 [q]; all the pattern's queries when None.

        Returns:
            bool [q, length], or [batch or 1, heads, q, length] where heads differ.
        """
        if queries is None:
            queries = torch.arange(self.length - self.query_len, self.length, device=self._device())
        own = self._own_visible(queries)
        row, key = queries[:, None], torch.arange(self.length, device=queries.device)
        opened = (key < self.sinks) | (row - key < self.local) | (row >= self.length - self.tail)
        return (own | opened) & (key <= row)

    def raised(self, queries: Tensor | None = None) -> Tensor:
        """What is added to the scores: float64 of `visible`'s shape, above 0 at sampled keys only."""
        if queries is None:
            queries = torch.arange(self.first, self.length, device=self._device())
        row, key = queries[:, None], torch.arange(self.length, device=queries.device)
        candidate = (key >= self.sinks) & (row - key >= max(self.local, 1))
        sampled = self.visible(queries) & candidate
        share = sampling_weight(self.weight, candidate.sum(-1), sampled.sum(-1))
        return torch.where(sampled, share[..., None], 0.0)

    def count(self) -> int:
        """Number of visible pairs of the pattern's queries: exact, or the mean over batch and heads, rounded."""
        if self.covers_all:
            return triangle(self.length) - triangle(self.first)
        extras = extra_pairs(self.length, self.sinks, self.local) - extra_pairs(self.first, self.sinks, self.local)
        pairs = self._own_pairs() + extras - (self._own_extra_overlap() if extras else 0)
        if not self.tail:
            return round(pairs)
        rows = torch.arange(self.length - self.tail, self.length, device=self._device())
        sparse = replace(self, tail=0)
        masked = sum(_mean_count(sparse.visible(chunk)) for chunk in rows.split(256))
        return round(pairs - masked + int((rows + 1).sum()))

    def _device(self) -> torch.device:
        return torch.device("cpu")


def sampling_weight(weight: float, candidates: Tensor, sampled: Tensor) -> Tensor:
    """weight * log(N / k) of every query, N = candidates and k = sampled; 0 where k = 0: float64 of their shape."""
    seen = sampled.double()
    return weight * torch.where(sampled > 0, candidates.double().clamp(min=1).log() - seen.clamp(min=1).log(), 0.0)


def _mean_count(mask: Tensor) -> float:
    return mask.sum().item() / max(1, mask[..., 0, 0].numel())


def extra_indices(pattern: Pattern) -> Iterator[tuple[Tensor, Tensor]]:
    """(query, key) positions of the pairs `extra_pairs` counts, a diagonal or a sink at a time: O(length) memory."""
    position = torch.arange(pattern.length, device=pattern._device())
    reach = max(min(pattern.local, pattern.length), 1)
    for distance in range(1, reach):
        queries = position[max(distance, pattern.first) :]
        yield queries, queries - distance
    for sink in range(min(pattern.sinks, pattern.length - reach)):
        queries = position[max(sink + reach, pattern.first) :]
        yield queries, torch.full_like(queries, sink)


@dataclass(frozen=True, eq=False, kw_only=True)
class Dense(Pattern):
    """Causal attention: every query sees every earlier key."""

    def _own_covers_all(self) -> bool:
        return True

    def _own_visible(self, queries: Tensor) -> Tensor:
        return torch.ones(queries.numel(), self.length, dtype=torch.bool, device=queries.device)

    def _own_pairs(self) -> float:
        return triangle(self.length) - triangle(self.first)
