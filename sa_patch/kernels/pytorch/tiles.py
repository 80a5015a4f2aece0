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
from sa_patch.kernels.merging import Part
from sa_patch.kernels.pytorch.parts import CHUNK_ENTRIES, empty_part, has_operator, masked_part, select_tokens
from sa_patch.patterns import Pattern, sampling_weight


@dataclass(frozen=True, eq=False)
class Tiles:
    """Which queries are computed together, and the keys they need.

    Attributes:
        queries: positions, int [tiles, rows]; every query of the pattern, and copies that fill tiles up.
        keys: positions, int [tiles, span]; `length` in empty slots.
        slot: int64 [query_len], the index of each query in the flattened `queries`; None where these hold every query
            once, and copies only at their end.
        near: (slice of tiles) -> bool [tiles or 1, rows, span], the pairs whose ranks are near enough; None: all pairs.
        line: (line, step): the keys of tile t are line[t * step : t * step + span], and `keys` is a view of that.
        alike: (mask, start, stop): the mask of each of the tiles start .. stop - 1 is this one, bool [1, rows, span].
        causal: the queries of a tile are its keys, in the order of their positions.
        ordered: the flattened `queries` ascend by 1, up to the copies at the end.
    """

    queries: Tensor
    keys: Tensor
    slot: Tensor | None = None
    near: Callable[[slice], Tensor] | None = None
    line: tuple[Tensor, int] | None = None
    alike: tuple[Tensor, int, int] | None = None
    causal: bool = False
    ordered: bool = False

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
    into: Tensor | None = None,
) -> Part:
    """Attention over the pairs of all tiles.

    Args:
        query: [batch, heads, query_len, head_dim]; key, value: [batch, kv_heads, length, head_dim].
        with_lse: return the log-sum-exp, because the part is merged with others, or gradients need it.
        exclude: see `Tiles.mask`. Where it weighs sampled keys, the log-sum-exp is that of the weighted ones.
        into: where the output goes; a new tensor if None.

    Returns:
        (output [batch, heads, query_len, head_dim], log-sum-exp [batch, heads, query_len] or None)
    """
    output, lse = empty_part(query, with_lse=with_lse, into=into)
    if query.shape[0] > 1 and tiles.line is not None:  # views of a line exist for one sequence only
        for row in range(query.shape[0]):
            one = slice(row, row + 1)
            heads, settings = (query[one], key[one], value[one]), {"with_lse": with_lse, "exclude": exclude}
            _, row_lse = tiles_part(*heads, tiles, scaling, **settings, into=output[one])
            if lse is not None and row_lse is not None:
                lse[one] = row_lse
        return output, lse
    batch, heads, query_len, head_dim = query.shape
    rows, span = tiles.queries.shape[1], tiles.keys.shape[1]
    keys, values = keys_of_tiles(key, tiles), keys_of_tiles(value, tiles)
    found = []
    scored = with_lse and not has_operator(query, key)
    for chunk in tiles.chunks(_tiles_at_once(batch * rows, span, heads, head_dim, scored)):
        q = _queries(query, tiles, chunk, key.shape[2] - query_len)
        shown = tiles.mask(chunk, exclude)
        mask = shown[:, None] if batch == 1 else shown[:, None].repeat(batch, 1, 1, 1)
        part: Part
        if with_lse:
            some, some_lse = masked_part(q, keys(chunk), values(chunk), mask, scaling, all_see=exclude is None)
            if exclude is not None and exclude.weight:
                raised = tiles.raised(chunk, shown, exclude).to(some_lse.dtype)
                some_lse = some_lse + raised.repeat(batch, 1)[:, None]
            part = join_tiles(some, batch), join_tiles(some_lse, batch)
        else:
            part = join_tiles(fused(q, keys(chunk), values(chunk), scaling, mask), batch), None
        if tiles.slot is None:  # results are written while they are in the CPU's cache
            _write(output, lse, part, tiles, chunk, key.shape[2] - query_len)
        else:
            found.append(part)
    if tiles.slot is not None:
        output.copy_(torch.cat([some for some, _ in found], dim=2).index_select(2, tiles.slot))
        if lse is not None:
            lses = [some_lse for _, some_lse in found if some_lse is not None]
            lse.copy_(torch.cat(lses, dim=2).index_select(2, tiles.slot))
    return output, lse


def _queries(query: Tensor, tiles: Tiles, chunk: slice, first: int) -> Tensor:
    """The queries of some tiles, [batch * tiles, heads, rows, head_dim]; a view where they lie in order."""
    rows = tiles.queries.shape[1]
    if not tiles.ordered or query.shape[0] > 1 or chunk.stop * rows > query.shape[2]:
        return gather_tiles(query, tiles.queries[chunk] - first)
    return query[0, :, chunk.start * rows : chunk.stop * rows].unflatten(1, (-1, rows)).transpose(0, 1)


def _write(output: Tensor, lse: Tensor | None, part: Part, tiles: Tiles, chunk: slice, first: int) -> None:
    """Write the results of some tiles to their queries' places; those of copies, in the last tile, are dropped."""
    start = chunk.start * tiles.queries.shape[1]
    stop = min(output.shape[2], chunk.stop * tiles.queries.shape[1])
    for target, found in zip((output, lse), part, strict=True):
        if target is None or found is None:
            continue
        found = found[:, :, : stop - start]
        if tiles.ordered:
            target[:, :, start:stop] = found
        else:
            place = tiles.queries[chunk].flatten()[: stop - start].long() - first
            target.index_copy_(2, place, found.to(target.dtype))


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
    windows = select_tokens(tensor, line.clamp(max=last))[0].unfold(1, tiles.keys.shape[1], step)
    return lambda chunk: windows[:, chunk].permute(1, 0, 3, 2)


def gather_tiles(tensor: Tensor, index: Tensor) -> Tensor:
    """[batch, heads, tokens, head_dim] at [tiles, k] -> [batch * tiles, heads, k, head_dim]"""
    return select_tokens(tensor, index.flatten()).unflatten(2, index.shape).transpose(1, 2).flatten(0, 1)


def join_tiles(tensor: Tensor, batch: int) -> Tensor:
    """[batch * tiles, heads, rows, ...] -> [batch, heads, tiles * rows, ...]"""
    return tensor.unflatten(0, (batch, -1)).transpose(1, 2).flatten(2, 3)
