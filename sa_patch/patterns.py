"""Patterns: who sees whom, as data. The closed set every kernel executes: Dense, Band, Blocks, Scattered, Lines,
Selected; and those made of others, Pieces and Heads.

A pattern covers one sequence of `length` keys whose queries are the last `query_len` positions. All positions here are
logical (real tokens only). On top of its own part every pattern may open sinks, a local window and a dense tail. The
order of a permuted pattern may hold more tokens than there are keys: tokens still to come have their ranks already.
Imports torch only.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from sa_patch.counting import band_pairs, extra_pairs, run_pairs, triangle
from sa_patch.randomness import inverse


@dataclass(frozen=True, eq=False, kw_only=True)
class Pattern:
    """What is common to all patterns.

    Attributes:
        length: number of keys, n.
        query_len: the queries are positions n - query_len .. n - 1.
        sinks: the first `sinks` keys are visible to every later query.
        local: the last `local` keys (the query's own included) are visible.
        tail: the last `tail` queries see every earlier key.
        weight: 0, or the scores of sampled keys are raised by weight * log(N / k). A query's certain keys are sinks,
            local window and itself; N earlier keys are not certain, and k of them are seen, the sampled ones.
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
        """The own part for the given query positions, causality aside: bool [..., len(queries), length]."""
        raise NotImplementedError

    def _own_pairs(self) -> float:
        """Pairs of the own part over the pattern's queries, causality included."""
        raise NotImplementedError

    def _own_extra_overlap(self) -> float:
        """Pairs strictly below the diagonal in the own part and also in sinks or local, over the pattern's queries."""
        raise NotImplementedError

    def visible(self, queries: Tensor | None = None) -> Tensor:
        """The mask itself, O(query_len x length) memory: for people, tests and short sequences.

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
        """What is added to the scores of visible keys: float64, as `visible`; 0 for all that are not sampled."""
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
    """weight * log(N / k) of every query, 0 where nothing was sampled: float64, as `sampled`."""
    seen = sampled.double()
    return weight * torch.where(sampled > 0, candidates.double().clamp(min=1).log() - seen.clamp(min=1).log(), 0.0)


def _mean_count(mask: Tensor) -> float:
    return mask.sum().item() / max(1, mask[..., 0, 0].numel())


def _extra_indices(pattern: Pattern) -> Iterator[tuple[Tensor, Tensor]]:
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


@dataclass(frozen=True, eq=False, kw_only=True)
class Band(Pattern):
    """Keys whose rank differs from the query's by less than `width`, in a given order of the tokens.

    Attributes:
        width: keys on each side, the query's own included.
        order: int64 [horizon], `order[rank] = position`, horizon >= length; None is the identity (a sliding window).
        circular: ranks form a ring.
        source: what the order was made from: equal sources, equal orders. None: nothing made from it is kept.
    """

    width: int
    order: Tensor | None = None
    circular: bool = False
    source: Hashable = None

    def _device(self) -> torch.device:
        return torch.device("cpu") if self.order is None else self.order.device

    @property
    def horizon(self) -> int:
        """Tokens that have ranks."""
        return self.length if self.order is None else self.order.numel()

    @property
    def own_key(self) -> tuple | None:
        """Equal tuples, equal own parts; None where the source of the order is not known."""
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
        return sum(int(self._near(ranks[query], ranks[key]).sum()) for query, key in _extra_indices(self))


@dataclass(frozen=True, eq=False, kw_only=True)
class Blocks(Pattern):
    """The tokens in a given order cut into runs of `block_size`: own run, causal, plus selected whole earlier runs.

    Attributes:
        block_size: tokens per run; the last run may be shorter.
        order: int64 [horizon], `order[rank] = position`, horizon >= length, positions ascending inside each run; None
            is the identity.
        selected: int64 [batch, heads, query_len, k], indices of further runs, -1 where there is none; only with the
            identity order, where every token of an earlier run precedes the query.
        source: what the order was made from: equal sources, equal orders. None: nothing made from it is kept.
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
        """Equal tuples, equal own parts, selected runs aside; None where the source of the order is not known."""
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
        for query, key in _extra_indices(self):
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


@dataclass(frozen=True, eq=False, kw_only=True)
class Scattered(Pattern):
    """The query itself and a list of earlier keys for every query, in no order that a kernel could use.

    Attributes:
        keys: int32 [query_len, drawn], distinct earlier positions of each query; -1 where it has fewer.
    """

    keys: Tensor

    def _device(self) -> torch.device:
        return self.keys.device

    def _own_covers_all(self) -> bool:
        return self.length == 1

    def _own_visible(self, queries: Tensor) -> Tensor:
        drawn = self.keys[queries - self.first].long()
        mask = torch.zeros(queries.numel(), self.length + 1, dtype=torch.bool, device=queries.device)
        mask.scatter_(1, torch.where(drawn < 0, self.length, drawn), True)
        return mask[:, : self.length].scatter_(1, queries[:, None], True)

    def _own_pairs(self) -> float:
        return self.query_len + int((self.keys >= 0).sum())

    def _own_extra_overlap(self) -> float:
        row = torch.arange(self.first, self.length, device=self.keys.device)[:, None]
        opened = (self.keys < self.sinks) | (row - self.keys < self.local)
        return int((opened & (self.keys >= 0)).sum())


@dataclass(frozen=True, eq=False, kw_only=True)
class Lines(Pattern):
    """The query itself, and for every query head vertical and slash lines beside sinks and local window.

    A vertical line is one key, for every later query; a slash line is one distance, at which every query sees the key
    that lies so far back. Both begin where sinks and local window end, so that only lines that cross share a pair.

    Attributes:
        verticals: int64 [batch, heads, v], positions of keys from `sinks` on, ascending, filled up with `length`.
        slashes: int64 [batch, heads, s], distances from max(`local`, 1) on, ascending, filled up with `length`.
    """

    verticals: Tensor
    slashes: Tensor

    def _device(self) -> torch.device:
        return self.verticals.device

    def _own_covers_all(self) -> bool:
        return self.length == 1

    def _own_visible(self, queries: Tensor) -> Tensor:
        distance = queries[:, None] - torch.arange(self.length, device=queries.device)
        crossed = self._marked(self.slashes)[:, :, distance.clamp(min=0)]
        return crossed | self._marked(self.verticals)[:, :, None] | (distance == 0)

    def _marked(self, lines: Tensor) -> Tensor:
        """Which positions or distances are lines: bool [batch, heads, length]."""
        marked = torch.zeros(*lines.shape[:2], self.length + 1, dtype=torch.bool, device=lines.device)
        return marked.scatter_(-1, lines.clamp(max=self.length), True)[..., : self.length]

    def _own_pairs(self) -> float:
        """Of lines beyond sinks and local window."""
        reach = max(self.local, 1)
        begins = torch.cat([self.verticals + reach, self.slashes + self.sinks], dim=-1).clamp(min=self.first)
        alone = int((self.length - begins).clamp(min=0).sum())
        # Vertical c and slash d cross in the row of query c + d.
        verticals, slashes = self.verticals.contiguous(), self.slashes.contiguous()
        before = [torch.searchsorted(verticals, row - slashes) for row in (self.length, self.first)]
        crossings = int((before[0] - before[1]).sum())
        return self.query_len + (alone - crossings) / self.verticals.shape[:2].numel()

    def _own_extra_overlap(self) -> float:
        return 0


@dataclass(frozen=True, eq=False, kw_only=True)
class Pieces(Pattern):
    """Consecutive stretches of queries, each with its own pattern over the keys up to its own end.

    Attributes:
        pieces: in order; piece k's queries end where piece k + 1's begin, and the last one's keys are all keys.
    """

    pieces: tuple[Pattern, ...]

    @classmethod
    def of(cls, pieces: list[Pattern]) -> Pattern:
        """The pieces as one pattern; a single piece is itself."""
        if len(pieces) == 1:
            return pieces[0]
        query_len = sum(piece.query_len for piece in pieces)
        weight = max(piece.weight for piece in pieces)
        return cls(length=pieces[-1].length, query_len=query_len, weight=weight, pieces=tuple(pieces))

    @property
    def covers_all(self) -> bool:
        return all(piece.covers_all for piece in self.pieces)

    def visible(self, queries: Tensor | None = None) -> Tensor:
        return self._joined(queries, lambda piece, own: piece.visible(own))

    def raised(self, queries: Tensor | None = None) -> Tensor:
        return self._joined(queries, lambda piece, own: piece.raised(own))

    def _joined(self, queries: Tensor | None, of_piece: Callable[[Pattern, Tensor], Tensor]) -> Tensor:
        if queries is None:
            queries = torch.arange(self.first, self.length, device=self._device())
        rows = []
        for piece in self.pieces:
            own = queries[(queries >= piece.first) & (queries < piece.length)]
            rows.append(F.pad(of_piece(piece, own), (0, self.length - piece.length)))
        return torch.cat(rows, dim=-2)

    def count(self) -> int:
        return sum(piece.count() for piece in self.pieces)

    def _device(self) -> torch.device:
        return self.pieces[-1]._device()


@dataclass(frozen=True, eq=False, kw_only=True)
class Heads(Pattern):
    """A pattern for every kv head, over the same queries and keys; kernels get them one by one.

    Attributes:
        of_head: one per kv head, in order; none is `Heads` itself.
        group: query heads per kv head.
    """

    of_head: tuple[Pattern, ...]
    group: int = 1

    @classmethod
    def of(cls, of_head: Sequence[Pattern], group: int) -> Pattern:
        """The patterns as one; where there is one head, or all of them are full attention, the first is all of them."""
        first = of_head[0]
        if len(of_head) == 1 or all(pattern.covers_all for pattern in of_head):
            return first
        shape = {"length": first.length, "query_len": first.query_len, "weight": first.weight}
        return cls(of_head=tuple(of_head), group=group, **shape)

    @property
    def covers_all(self) -> bool:
        return all(pattern.covers_all for pattern in self.of_head)

    def visible(self, queries: Tensor | None = None) -> Tensor:
        """bool [1, heads, q, length]."""
        return self._stacked([pattern.visible(queries) for pattern in self.of_head])

    def raised(self, queries: Tensor | None = None) -> Tensor:
        return self._stacked([pattern.raised(queries) for pattern in self.of_head])

    def _stacked(self, of_head: list[Tensor]) -> Tensor:
        return torch.stack(of_head).repeat_interleave(self.group, dim=0)[None]

    def count(self) -> int:
        return round(sum(pattern.count() for pattern in self.of_head) / len(self.of_head))

    def _device(self) -> torch.device:
        return self.of_head[0]._device()


@dataclass(frozen=True, eq=False, kw_only=True)
class Selected(Pattern):
    """Sinks, the local window, and for every tile of queries some blocks that lie wholly between the two.

    Blocks are `block_size` consecutive tokens, counted from the end of the sinks, so no pair is ever in two parts.
    Tiles are `query_block` consecutive positions, counted from 0. A block may be chosen by a tile where it ends before
    the local window of the tile's first query begins. Queries before `whole` see every earlier key.

    Attributes:
        block_size: tokens per block.
        query_block: queries per tile.
        count_per_tile: blocks a tile chooses, fewer where fewer may be chosen; the mean over choosers if `pooled`.
        whole: see above; at least sinks + local.
        selected: int64 [batch, choosers, tiles, count_per_tile or more], indices of blocks, -1 where there is none; a
            chooser is one query head or the heads of a kv head. None where only the number of pairs is asked for.
        heads: query heads.
        pooled: the choosers share their blocks, so that some choose more than others.
    """

    block_size: int
    query_block: int
    count_per_tile: int
    whole: int
    selected: Tensor | None = None
    heads: int = 1
    pooled: bool = False

    def _device(self) -> torch.device:
        return torch.device("cpu") if self.selected is None else self.selected.device

    def _own_covers_all(self) -> bool:
        return self.whole >= self.length

    def _own_visible(self, queries: Tensor) -> Tensor:
        if self.selected is None:
            raise ValueError("which blocks are seen depends on the content: the mask exists only in a forward pass")
        key = torch.arange(self.length, device=queries.device)
        block = torch.div(key - self.sinks, self.block_size, rounding_mode="floor")
        tile = queries // self.query_block - self.first // self.query_block
        chosen = self.selected[:, :, tile]
        num_blocks = max(1, -(-self.length // self.block_size))
        picked = torch.zeros(*chosen.shape[:-1], num_blocks + 1, dtype=torch.bool, device=chosen.device)
        picked.scatter_(-1, torch.where(chosen < 0, num_blocks, chosen), True)
        mask = picked[..., torch.where(block < 0, num_blocks, block)] & (block >= 0)
        mask = mask.repeat_interleave(self.heads // chosen.shape[1], dim=1)
        return mask | (key == queries[:, None]) | (queries[:, None] < self.whole)

    def count(self) -> int:
        """Number of visible pairs per head, exact whatever is chosen; if `pooled`, the mean over heads."""
        row = torch.arange(self.first, self.length)
        shown = self.sinks + max(self.local, 1) + self.block_size * self.choosable(row).clamp(max=self.count_per_tile)
        everything = (row < self.whole) | (row >= self.length - self.tail)
        return int(torch.where(everything, row + 1, torch.minimum(shown, row + 1)).sum())

    def choosable(self, position: Tensor) -> Tensor:
        """How many blocks the tile of a query may choose from: int64, as `position`."""
        first = torch.div(position, self.query_block, rounding_mode="floor") * self.query_block
        between = first + 1 - max(self.local, 1) - self.sinks
        return torch.div(between.clamp(min=0), self.block_size, rounding_mode="floor")
