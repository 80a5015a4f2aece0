"""Attention tile by tile: some queries, gathered, to all keys that any of them sees, gathered.

Not a kernel by itself; the `torch` kernel turns bands and runs into tiles. Chunked, so that memory beyond the inputs
and the output stays small.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from sa_patch.kernels.dense import fused
from sa_patch.kernels.merging import Part
from sa_patch.kernels.pytorch.parts import CHUNK_ENTRIES, masked_part
from sa_patch.patterns import Pattern


@dataclass(frozen=True, eq=False)
class Tiles:
    """Which queries go together, and the keys they need.

    Attributes:
        queries: positions, int [tiles, rows]; every query of the pattern, the last one repeated at the end.
        keys: positions, int [tiles, span]; `length` in empty slots.
        slot: int64 [query_len], where in the flattened `queries` each query's result is.
        near: some tiles -> their pairs of near ranks, bool [tiles or 1, rows, span]; None where all pairs are.
        line: where `keys` is an overlapping view of a line of positions, that line and its step from tile to tile.
        alike: (mask, start, stop): from tile start to stop all masks are this one, bool [1, rows, span].
    """

    queries: Tensor
    keys: Tensor
    slot: Tensor
    near: Callable[[slice], Tensor] | None = None
    line: tuple[Tensor, int] | None = None
    alike: tuple[Tensor, int, int] | None = None

    def steps(self, most: int) -> Iterator[slice]:
        """The tiles in stretches of at most `most`; those with one mask by themselves."""
        edges = [0, self.queries.shape[0]] if self.alike is None else [0, *self.alike[1:], self.queries.shape[0]]
        for first, last in pairwise(edges):
            for start in range(first, last, most):
                yield slice(start, min(start + most, last))

    def mask(self, part: slice, exclude: Pattern | None) -> Tensor:
        """Visible pairs of some tiles, without what the extras of `exclude` open: bool [tiles or 1, rows, span]."""
        if self.alike is not None and exclude is None and self.alike[1] <= part.start < self.alike[2]:
            return self.alike[0]
        row, key = self.queries[part, :, None], self.keys[part, None]
        mask = key <= row
        if self.near is not None:
            mask &= self.near(part)
        if exclude is not None:
            mask &= (key >= exclude.sinks) & (row - key >= exclude.local)
        return mask


def tiles_part(
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
    if query.shape[0] > 1 and tiles.line is not None:  # the overlapping view exists for one sequence only
        rows = zip(query.split(1), key.split(1), value.split(1), strict=True)
        parts = [tiles_part(*row, tiles, pattern, scaling, part=part, exclude=exclude) for row in rows]
        lse = torch.cat([lse for _, lse in parts if lse is not None]) if part else None
        return torch.cat([output for output, _ in parts]), lse
    batch, heads = query.shape[:2]
    rows, span = tiles.queries.shape[1], tiles.keys.shape[1]
    keys, values = _keys_of_tiles(key, tiles), _keys_of_tiles(value, tiles)
    outputs, lses = [], []
    even = torch.empty_like(query) if tiles.line is not None and not part else None
    for part_of in tiles.steps(_tiles_at_once(batch * rows, span, heads, query.shape[-1], part)):
        q = _gather(query, tiles.queries[part_of] - pattern.first)
        mask = tiles.mask(part_of, pattern if exclude else None)[:, None]
        mask = mask if batch == 1 else mask.repeat(batch, 1, 1, 1)
        if part:
            output, lse = masked_part(q, keys(part_of), values(part_of), mask, scaling)
            lses.append(_join(lse, batch))
        else:
            output = fused(q, keys(part_of), values(part_of), scaling, mask)
        output = _join(output, batch)
        if even is None:
            outputs.append(output)
        else:  # no surplus but at the end: results go where they belong while they are in the cache
            place = tiles.queries[part_of].flatten()[: pattern.query_len - part_of.start * rows]
            even.index_copy_(2, place.long(), output[:, :, : place.numel()])
    if even is not None:
        return even, None
    output = torch.cat(outputs, dim=2).index_select(2, tiles.slot)
    return output, torch.cat(lses, dim=2).index_select(2, tiles.slot) if part else None


def _tiles_at_once(rows: int, span: int, heads: int, head_dim: int, part: bool) -> int:
    """As many tiles as keep masks (scores, for parts) and gathered queries small."""
    entries = rows * span * (heads if part else 1)
    return max(1, min(CHUNK_ENTRIES // entries, CHUNK_ENTRIES // (rows * heads * head_dim)))


def _keys_of_tiles(tensor: Tensor, tiles: Tiles) -> Callable[[slice], Tensor]:
    """Some tiles -> their keys or values [batch * tiles, kv_heads, span, head_dim]; a view where they lie evenly."""
    last = tensor.shape[2] - 1  # what empty slots hold is masked
    if tiles.line is None:
        return lambda part: _gather(tensor, tiles.keys[part].clamp(max=last))
    line, step = tiles.line
    windows = tensor[0].index_select(1, line.clamp(max=last)).unfold(1, tiles.keys.shape[1], step)
    return lambda part: windows[:, part].permute(1, 0, 3, 2)


def _gather(tensor: Tensor, index: Tensor) -> Tensor:
    """[batch, heads, tokens, head_dim] at [tiles, k] -> [batch * tiles, heads, k, head_dim]"""
    picked = tensor.index_select(2, index.flatten()).unflatten(2, index.shape)
    return picked.transpose(1, 2).flatten(0, 1)


def _join(tensor: Tensor, batch: int) -> Tensor:
    """[batch * tiles, heads, rows, ...] -> [batch, heads, tiles * rows, ...]"""
    return tensor.unflatten(0, (batch, -1)).transpose(1, 2).flatten(2, 3)
