"""Attention tile by tile: some queries, gathered, to all keys that any of them sees, gathered.

Not a kernel by itself; the `torch` kernel turns bands and runs into tiles. Chunked, so that memory beyond the inputs
and the output stays small.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sa_patch.kernels.dense import fused
from sa_patch.kernels.partial import CHUNK_ENTRIES, Part, attend
from sa_patch.patterns import Pattern


@dataclass(frozen=True, eq=False)
class Tiles:
    """Which queries go together, and the keys they need.

    Attributes:
        queries: positions, int64 [tiles, rows]; every query of the pattern at least once.
        keys: positions, int64 [tiles, span]; `length` in empty slots.
        slot: int64 [query_len], where in the flattened `queries` each query's result is.
        query_rank, key_rank: with `width`, only pairs whose ranks differ by less are visible; shapes as above.
    """

    queries: Tensor
    keys: Tensor
    slot: Tensor
    query_rank: Tensor | None = None
    key_rank: Tensor | None = None
    width: int = 0

    def mask(self, start: int, stop: int, exclude: Pattern | None) -> Tensor:
        """Visible pairs of some tiles, without those that the extras of `exclude` open: bool [tiles, rows, span]."""
        row, key = self.queries[start:stop, :, None], self.keys[start:stop, None]
        mask = key <= row
        if self.query_rank is not None and self.key_rank is not None:
            distance = self.query_rank[start:stop, :, None] - self.key_rank[start:stop, None]
            mask &= distance.abs() < self.width
        if exclude is not None:
            mask &= (key >= exclude.sinks) & (row - key >= exclude.local)
        return mask


def attend_tiles(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    tiles: Tiles,
    pattern: Pattern,
    scaling: float,
    *,
    part: bool,
    exclude: bool,
) -> Part:
    """The pairs of all tiles.

    Args:
        query: [batch, heads, query_len, head_dim]; key, value: [batch, kv_heads, length, head_dim].
        part: return what `merge` needs.
        exclude: leave out the pairs that the pattern's sinks and local window open.

    Returns:
        (output [batch, heads, query_len, head_dim], log-sum-exp [batch, heads, query_len] or None)
    """
    batch, heads = query.shape[:2]
    num_tiles, rows = tiles.queries.shape
    span = tiles.keys.shape[1]
    step = max(1, CHUNK_ENTRIES // (batch * rows * span * (heads if part else 1)))
    outputs, lses = [], []
    for start in range(0, num_tiles, step):
        stop = min(start + step, num_tiles)
        near = tiles.keys[start:stop].clamp(max=pattern.length - 1)
        q = _gather(query, tiles.queries[start:stop] - pattern.first)
        k, v = _gather(key, near), _gather(value, near)
        mask = tiles.mask(start, stop, pattern if exclude else None)[:, None]
        mask = mask if batch == 1 else mask.repeat(batch, 1, 1, 1)
        if part:
            output, lse = attend(q, k, v, mask, scaling)
            lses.append(_join(lse, batch))
        else:
            output = fused(q, k, v, scaling, mask)
        outputs.append(_join(output, batch))
    output = torch.cat(outputs, dim=2).index_select(2, tiles.slot)
    return output, torch.cat(lses, dim=2).index_select(2, tiles.slot) if part else None


def _gather(tensor: Tensor, index: Tensor) -> Tensor:
    """[batch, heads, tokens, head_dim] at [tiles, k] -> [batch * tiles, heads, k, head_dim]"""
    picked = tensor.index_select(2, index.flatten()).unflatten(2, index.shape)
    return picked.transpose(1, 2).flatten(0, 1)


def _join(tensor: Tensor, batch: int) -> Tensor:
    """[batch * tiles, heads, rows, ...] -> [batch, heads, tiles * rows, ...]"""
    return tensor.unflatten(0, (batch, -1)).transpose(1, 2).flatten(2, 3)
