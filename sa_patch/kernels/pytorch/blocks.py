"""Blocks patterns in O(n x visible keys) time and O(n) memory beyond the inputs. Belongs to the `torch` kernel.

The own runs are batched causal attention, or tiles where only some tokens are queries. For selected runs the queries
that want a run are computed together, and merged with the rest by log-sum-exp.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from sa_patch.kernels.dense import fused
from sa_patch.kernels.merging import Part, merge, wide
from sa_patch.kernels.pytorch.parts import CHUNK_ENTRIES, masked_part
from sa_patch.kernels.pytorch.tiles import Tiles, tiles_part
from sa_patch.kernels.requests import sort_by_run
from sa_patch.patterns import Blocks

_TILE = 64  # queries per tile that want one selected run
_ROWS = 64  # queries of an own run that are computed in one step, with the keys up to the last of them


def blocks_part(query: Tensor, key: Tensor, value: Tensor, blocks: Blocks, scaling: float, *, split: bool) -> Part:
    """Attention to own and selected runs.

    Args:
        query: [batch, heads, query_len, head_dim]; key, value: [batch, kv_heads, length, head_dim].
        split: sinks and local window are parts of their own, to be merged: leave out the pairs that they show.

    Returns:
        (output [batch, heads, query_len, head_dim], log-sum-exp [batch, heads, query_len] or None)
    """
    whole = blocks.query_len == blocks.length and (blocks.order is None or blocks.order.numel() == blocks.length)
    chosen = blocks.selected is not None and blocks.selected.shape[-1] > 0
    if whole and not chosen and not split:
        return _own_runs_fused(query, key, value, blocks, scaling), None
    if whole and not split and query.device.type == "cpu":
        own = _own_runs(query, key, value, blocks, scaling)
    else:
        tiles, exclude = run_tiles(blocks, query.device), blocks if split else None
        own = tiles_part(query, key, value, tiles, scaling, with_lse=split or chosen, exclude=exclude)
    if not chosen:
        return own
    return merge([own, *_selected_runs(query, key, value, blocks, scaling, split)])


def run_tiles(blocks: Blocks, device: torch.device) -> Tiles:
    """A tile for every run that holds queries: they are its last tokens, because positions ascend inside a run."""
    size = blocks.block_size
    order = torch.arange(blocks.length, device=device) if blocks.order is None else blocks.order
    position = F.pad(order, (0, -order.numel() % size), value=order.numel()).view(-1, size)
    before = (position < blocks.first).sum(dim=1)
    count = (position < blocks.length).sum(dim=1)
    used = (count > before).nonzero()[:, 0]
    position, before, count = position[used], before[used, None], count[used, None]
    rows, span = int((count - before).max()), int(count.max())
    # Tiles with fewer queries are filled up with copies of the last one, whose results are dropped.
    queries = position.gather(1, torch.minimum(before + torch.arange(rows, device=device), count - 1))
    slot = torch.empty(blocks.query_len, dtype=torch.int64, device=device)
    real = torch.arange(rows, device=device) < count - before
    slot[queries[real] - blocks.first] = real.flatten().nonzero()[:, 0]
    return Tiles(queries, position[:, :span].clamp(max=blocks.length), slot)


def _own_runs_fused(query: Tensor, key: Tensor, value: Tensor, blocks: Blocks, scaling: float) -> Tensor:
    """Whole sequences without extras: the own runs are a batch of short causal sequences, no mask needed."""
    size, batch, length = blocks.block_size, query.shape[0], query.shape[2]
    # A few runs at a time: what is gathered stays in the CPU's caches, and no large buffer is allocated.
    step = max(1, CHUNK_ENTRIES // (batch * query.shape[1] * size * query.shape[3])) * size
    output = torch.empty_like(query)
    for start in range(0, length // size * size, step):
        stop = min(start + step, length // size * size)
        q, k, v = (_runs(_ranks(tensor, blocks.order, start, stop), size) for tensor in (query, key, value))
        _put(output, _unruns(_causal_runs(q, k, v, scaling), batch), blocks.order, start, stop)
    if length % size:
        start = length - length % size
        q, k, v = (_ranks(tensor, blocks.order, start, length) for tensor in (query, key, value))
        _put(output, _causal_runs(q, k, v, scaling), blocks.order, start, length)
    return output


def _own_runs(query: Tensor, key: Tensor, value: Tensor, blocks: Blocks, scaling: float) -> Part:
    """Whole sequences in the identity order: the part of the own runs, to be merged with the selected ones."""
    size, batch, length = blocks.block_size, query.shape[0], query.shape[2]
    edge = length // size * size
    q, k, v = (_runs(tensor[:, :, :edge], size) for tensor in (query, key, value))
    parts = [tuple(_unruns(found, batch) for found in _causal_steps(q, k, v, scaling))]
    if edge < length:
        q, k, v = (tensor[:, :, edge:] for tensor in (query, key, value))
        parts.append(_causal_steps(q, k, v, scaling))
    output, lse = (torch.cat(pieces, dim=2) for pieces in zip(*parts, strict=True))
    return output, lse


def _causal_runs(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    """Causal attention of a batch of short sequences: [runs, heads, size, head_dim].

    PyTorch's CPU kernel skips the future only beyond 512 keys. Steps with a mask that all runs share compute
    (size + 64) / 2 keys per query instead of all: 30 % faster at 255 keys, 12 % at 1,023.
    """
    if query.device.type != "cpu" or query.shape[2] <= _ROWS:
        return fused(query, key, value, scaling, causal=True)
    output = torch.empty_like(query)
    for rows, mask in _steps(query.shape[2]):
        seen = key[:, :, : rows.stop], value[:, :, : rows.stop]
        output[:, :, rows] = fused(query[:, :, rows], *seen, scaling, mask)
    return output


def _causal_steps(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    """`_causal_runs` with log-sum-exps: [runs, heads, size, head_dim] and [runs, heads, size]."""
    found = [
        masked_part(query[:, :, rows], key[:, :, : rows.stop], value[:, :, : rows.stop], mask[None, None], scaling)
        for rows, mask in _steps(query.shape[2])
    ]
    output, lse = (torch.cat(pieces, dim=2) for pieces in zip(*found, strict=True))
    return output, lse


def _steps(size: int) -> Iterator[tuple[slice, Tensor]]:
    """Steps of rows, and their masks over the keys up to each step's end: bool [rows, keys], for the CPU."""
    position = torch.arange(size)
    for start in range(0, size, _ROWS):
        rows = slice(start, min(start + _ROWS, size))
        yield rows, position[: rows.stop] <= position[rows, None]


def _ranks(tensor: Tensor, order: Tensor | None, start: int, stop: int) -> Tensor:
    """The tokens of some ranks: [batch, heads, stop - start, head_dim]."""
    return tensor[:, :, start:stop] if order is None else tensor.index_select(2, order[start:stop])


def _put(output: Tensor, found: Tensor, order: Tensor | None, start: int, stop: int) -> None:
    """Write results of some ranks into `output`: the inverse of `_ranks`."""
    if order is None:
        output[:, :, start:stop] = found
    else:
        output.index_copy_(2, order[start:stop], found)


def _runs(tensor: Tensor, size: int) -> Tensor:
    """[batch, heads, m * size, ...] -> [batch * m, heads, size, ...]"""
    return tensor.unflatten(2, (-1, size)).transpose(1, 2).flatten(0, 1)


def _unruns(tensor: Tensor, batch: int) -> Tensor:
    """The inverse of `_runs`."""
    return tensor.unflatten(0, (batch, -1)).transpose(1, 2).flatten(2, 3)


def _selected_runs(
    query: Tensor, key: Tensor, value: Tensor, blocks: Blocks, scaling: float, split: bool
) -> list[Part]:
    """A part for each of the k selected runs per query."""
    selected, size = blocks.selected, blocks.block_size
    assert selected is not None
    num_chosen, whole, head_dim = selected.shape[-1], blocks.length // size, query.shape[-1]
    wanted, order = sort_by_run(blocks, key.shape[1], whole)
    served = int((selected >= 0).sum())
    wanted, order = wanted[:served], order[:served]
    slot, tile_run = _tile(wanted, key.shape[0] * key.shape[1] * whole)
    pair = torch.full((tile_run.numel() * _TILE,), -1, device=query.device).index_copy(0, slot, order)
    pair, source = pair.view(-1, _TILE), (pair.clamp(min=0) // num_chosen).view(-1, _TILE)
    keys = key[:, :, : whole * size].reshape(-1, size, head_dim)
    values = value[:, :, : whole * size].reshape(-1, size, head_dim)
    flat, total = query.reshape(-1, head_dim), selected.numel()
    output = query.new_zeros(total, head_dim, dtype=wide(query))
    lse = query.new_full((total,), -torch.inf, dtype=wide(query))
    step = max(1, CHUNK_ENTRIES // (_TILE * size))
    for tiles in torch.arange(tile_run.numel(), device=query.device).split(step):
        mask = _selected_mask(source[tiles], tile_run[tiles], blocks, whole) if split else None
        run = tile_run[tiles]
        rows = flat.index_select(0, source[tiles].flatten()).view(-1, 1, _TILE, head_dim)
        found, found_lse = masked_part(
            rows, keys.index_select(0, run)[:, None], values.index_select(0, run)[:, None], mask, scaling
        )
        kept = (pair[tiles].flatten() >= 0).nonzero()[:, 0]
        target = pair[tiles].flatten()[kept]
        output.index_copy_(0, target, found.flatten(0, 2).index_select(0, kept))
        lse.index_copy_(0, target, found_lse.flatten().index_select(0, kept))
    output, lse = output.view(*selected.shape, head_dim), lse.view(selected.shape)
    return list(zip(output.unbind(3), lse.unbind(3), strict=True))


def _selected_mask(source: Tensor, run: Tensor, blocks: Blocks, whole: int) -> Tensor:
    row = (source % blocks.query_len + blocks.first)[:, None, :, None]
    column = (run % whole * blocks.block_size).view(-1, 1, 1, 1) + torch.arange(blocks.block_size, device=run.device)
    return (column >= blocks.sinks) & (row - column >= blocks.local)


def _tile(run: Tensor, num_runs: int) -> tuple[Tensor, Tensor]:
    """Cut sorted pairs into tiles of `_TILE` that want one run.

    Args:
        run: int64 [pairs], the run each pair wants, ascending.

    Returns:
        (where each pair is among tiles x _TILE slots, the run of each tile)
    """
    count = torch.bincount(run, minlength=num_runs)
    tiles = -(-count // _TILE)
    first = tiles.cumsum(0) - tiles
    within = torch.arange(run.numel(), device=run.device) - (count.cumsum(0) - count)[run]
    return first[run] * _TILE + within, torch.repeat_interleave(torch.arange(num_runs, device=run.device), tiles)
