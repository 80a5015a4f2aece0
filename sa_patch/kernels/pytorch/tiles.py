"""Attention tile by tile: some queries, gathered, to all keys that any of them sees, gathered.

Bands and runs become tiles for the `torch` kernel. A chunk of tiles is computed at a time, so that memory beyond inputs
and output stays small.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from sa_patch.kernels.dense import fused
from sa_patch.kernels.merging import Part, wide
from sa_patch.kernels.pytorch.parts import CHUNK_ENTRIES, has_operator, masked_part
from sa_patch.patterns import Pattern, sampling_weight


@dataclass(frozen=True, eq=False)
class Tiles:
    """Which queries are computed together, and the keys they need.

    Attributes:
        queries: positions, int [tiles, rows]; every query of the pattern, and copies that fill tiles up.
        keys: positions, int [tiles, span]; `length` in empty slots.
        slot: int64 [query_len], where in the flattened `queries` each query's result is.
        near: (slice of tiles) -> bool [tiles or 1, rows, span], the pairs whose ranks are near enough. Without it, all
            pairs of a tile are.
        line: where the keys of tile t are line[t * step : t * step + span]: (line, step). `keys` is a view of it.
        alike: (mask, start, stop): the mask of each of the tiles start .. stop - 1 is this one, bool [1, rows, span].
        causal: the queries of a tile are its keys, in the order of their positions.
    """

    queries: Tensor
    keys: Tensor
    slot: Tensor
    near: Callable[[slice], Tensor] | None = None
    line: tuple[Tensor, int] | None = None
    alike: tuple[Tensor, int, int] | None = None
    causal: bool = False

    def chunks(self, most: int) -> Iterator[slice]:
        """Slices of at most `most` tiles. Tiles that are `alike` are in slices of their own."""
        edges = [0, self.queries.shape[0]] if self.alike is None else [0, *self.alike[1:], self.queries.shape[0]]
        for first, last in pairwise(edges):
            for start in range(first, last, most):
                yield slice(start, min(start + most, last))

    def mask(self, chunk: slice, exclude: Pattern | None) -> Tensor:
        """Visible pairs of some tiles: bool [tiles or 1, rows, span].

        Args:
            exclude: leave out the pairs that this pattern's sinks and local window show.
        """
        if self.alike is not None and exclude is None and self.alike[1] <= chunk.start < self.alike[2]:
            return self.alike[0]
        row, key = self.queries[chunk, :, None], self.keys[chunk, None]
        mask = key <= row
        if self.near is not None:
            mask &= self.near(chunk)
        if exclude is not None:
            mask &= (key >= exclude.sinks) & (row - key >= exclude.local)
        return mask

    def raised(self, chunk: slice, mask: Tensor, weighted: Pattern) -> Tensor:
        """What the scores of some tiles' keys are raised by, all of a query by the same: float64 [tiles, rows].

        Args:
            mask: from `mask`, with `weighted` for its `exclude`.
        """
        candidates = (self.queries[chunk] + 1 - weighted.local - weighted.sinks).clamp(min=0)
        return sampling_weight(weighted.weight, candidates, mask.sum(-1))


def tiles_part(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    tiles: Tiles,
    scaling: float,
    *,
    with_lse: bool,
    exclude: Pattern | None = None,
) -> Part:
    """Attention over the pairs of all tiles.

    Args:
        query: [batch, heads, query_len, head_dim]; key, value: [batch, kv_heads, length, head_dim].
        with_lse: return the log-sum-exp, because the part is merged with others, or gradients need it.
        exclude: see `Tiles.mask`. Where it weighs sampled keys, the log-sum-exp is that of the weighted ones.

    Returns:
        (output [batch, heads, query_len, head_dim], log-sum-exp [batch, heads, query_len] or None)
    """
    if query.shape[0] > 1 and tiles.line is not None:  # views of a line exist for one sequence only
        rows = zip(query.split(1), key.split(1), value.split(1), strict=True)
        parts = [tiles_part(*row, tiles, scaling, with_lse=with_lse, exclude=exclude) for row in rows]
        lse = torch.cat([lse for _, lse in parts if lse is not None]) if with_lse else None
        return torch.cat([output for output, _ in parts]), lse
    batch, heads, query_len, head_dim = query.shape
    rows, span = tiles.queries.shape[1], tiles.keys.shape[1]
    keys, values = keys_of_tiles(key, tiles), keys_of_tiles(value, tiles)
    outputs, lses = [], []
    dtype = wide(query) if with_lse else query.dtype
    whole = torch.empty_like(query, dtype=dtype) if tiles.line is not None else None
    whole_lse = query.new_empty(query.shape[:3], dtype=dtype) if tiles.line is not None and with_lse else None
    scored = with_lse and not has_operator(query, key)
    for chunk in tiles.chunks(_tiles_at_once(batch * rows, span, heads, head_dim, scored)):
        q = gather_tiles(query, tiles.queries[chunk] - (key.shape[2] - query_len))
        shown = tiles.mask(chunk, exclude)
        mask = shown[:, None] if batch == 1 else shown[:, None].repeat(batch, 1, 1, 1)
        lse = None
        if with_lse:
            output, lse = masked_part(q, keys(chunk), values(chunk), mask, scaling, all_see=exclude is None)
            if exclude is not None and exclude.weight:
                lse = lse + tiles.raised(chunk, shown, exclude).to(lse.dtype).repeat(batch, 1)[:, None]
            lse = join_tiles(lse, batch)
        else:
            output = fused(q, keys(chunk), values(chunk), scaling, mask)
        output = join_tiles(output, batch)
        if whole is None:
            outputs.append(output)
            lses.append(lse)
            continue
        # Only the last tile holds copies: results are written while they are in the CPU's cache.
        target = tiles.queries[chunk].flatten()[: query_len - chunk.start * rows].long()
        whole.index_copy_(2, target, output[:, :, : target.numel()])
        if whole_lse is not None and lse is not None:
            whole_lse.index_copy_(2, target, lse[:, :, : target.numel()])
    if whole is not None:
        return whole, whole_lse
    output = torch.cat(outputs, dim=2).index_select(2, tiles.slot)
    return output, torch.cat(lses, dim=2).index_select(2, tiles.slot) if with_lse else None


def _tiles_at_once(rows: int, span: int, heads: int, head_dim: int, scored: bool) -> int:
    """As many tiles as keep gathered queries small, and masks, or scores where they are held."""
    entries = rows * span * (heads if scored else 1)
    return max(1, min(CHUNK_ENTRIES // entries, CHUNK_ENTRIES // (rows * heads * head_dim)))


def keys_of_tiles(tensor: Tensor, tiles: Tiles) -> Callable[[slice], Tensor]:
    """(slice of tiles) -> their keys or values [batch * tiles, kv_heads, span, head_dim]; views of a line."""
    last = tensor.shape[2] - 1  # an empty slot gets any key: its pairs are masked
    if tiles.line is None:
        return lambda chunk: gather_tiles(tensor, tiles.keys[chunk].clamp(max=last))
    line, step = tiles.line
    windows = tensor[0].index_select(1, line.clamp(max=last)).unfold(1, tiles.keys.shape[1], step)
    return lambda chunk: windows[:, chunk].permute(1, 0, 3, 2)


def gather_tiles(tensor: Tensor, index: Tensor) -> Tensor:
    """[batch, heads, tokens, head_dim] at [tiles, k] -> [batch * tiles, heads, k, head_dim]"""
    picked = tensor.index_select(2, index.flatten()).unflatten(2, index.shape)
    return picked.transpose(1, 2).flatten(0, 1)


def join_tiles(tensor: Tensor, batch: int) -> Tensor:
    """[batch * tiles, heads, rows, ...] -> [batch, heads, tiles * rows, ...]"""
    return tensor.unflatten(0, (batch, -1)).transpose(1, 2).flatten(2, 3)
