"""Patterns whose keys are listed: query by query, as lines through the mask, or as blocks that tiles choose."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sa_patch.patterns.base import Pattern


@dataclass(frozen=True, eq=False, kw_only=True)
class Scattered(Pattern):
    """The query itself and a list of earlier keys for every query, which have no structure that a kernel could use.

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

    Vertical line c: every query i >= c sees key c; before i = c + max(local, 1) the local window shows it anyway.
    Slash line d: every query i >= d sees key i - d; before i = d + sinks that is a sink. Beyond these pairs, only lines
    that cross share one.

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
        """Of the queries themselves, and of lines beyond sinks and local window; the mean over batch and heads."""
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
class Selected(Pattern):
    """Sinks, the local window, and for every tile of queries some blocks that lie wholly between the two.

    Block b begins at token sinks + b * block_size, so no pair is ever in two parts.
    Tile t holds the queries t * query_block .. (t + 1) * query_block - 1. A tile may choose the blocks that end before
    the local window of its first query begins. Queries i < `whole` see every earlier key.

    Attributes:
        block_size: tokens per block.
        query_block: queries per tile.
        count_per_tile: blocks that a tile chooses, at most all that it may; the mean over choosers if `pooled`.
        whole: >= sinks + local.
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
        """Visible pairs per head, which do not depend on which blocks are chosen; the mean over heads if `pooled`."""
        row = torch.arange(self.first, self.length)
        shown = self.sinks + max(self.local, 1) + self.block_size * self.choosable(row).clamp(max=self.count_per_tile)
        everything = (row < self.whole) | (row >= self.length - self.tail)
        return int(torch.where(everything, row + 1, torch.minimum(shown, row + 1)).sum())

    def choosable(self, position: Tensor) -> Tensor:
        """How many blocks the tile of a query may choose from: int64, as `position`."""
        first = torch.div(position, self.query_block, rounding_mode="floor") * self.query_block
        between = first + 1 - max(self.local, 1) - self.sinks
        return torch.div(between.clamp(min=0), self.block_size, rounding_mode="floor")
