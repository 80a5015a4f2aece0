"""The selected runs of Blocks patterns, for the `torch` kernel: queries that want a run are computed together."""

from collections.abc import Iterator

import torch
from torch import Tensor

from sa_patch.kernels.merging import Part, wide
from sa_patch.kernels.pytorch.parts import CHUNK_ENTRIES, Record, masked_gradients, masked_part
from sa_patch.kernels.requests import sort_by_run
from sa_patch.patterns import Blocks

_TILE = 64  # queries per tile that want one selected run


def selected_runs_parts(
    query: Tensor, key: Tensor, value: Tensor, blocks: Blocks, scaling: float, split: bool
) -> list[Part]:
    """A part for each of the k selected runs per query.

    Args:
        query: [batch, heads, query_len, head_dim]; key, value: [batch, kv_heads, length, head_dim].
        split: leave out the pairs that sinks and local window show.
    """
    selected, head_dim = blocks.selected, query.shape[-1]
    assert selected is not None
    keys, values = _runs(key, blocks), _runs(value, blocks)
    output = query.new_zeros(selected.numel(), head_dim, dtype=wide(query))
    lse = query.new_full((selected.numel(),), -torch.inf, dtype=wide(query))
    for run, pair, source, mask in _tiles(blocks, key.shape[0], key.shape[1], split):
        heads = _rows(query, source), keys.index_select(0, run)[:, None], values.index_select(0, run)[:, None]
        found, found_lse = masked_part(*heads, mask, scaling)
        kept = (pair.flatten() >= 0).nonzero()[:, 0]
        target = pair.flatten()[kept]
        output.index_copy_(0, target, found.flatten(0, 2).index_select(0, kept))
        lse.index_copy_(0, target, found_lse.flatten().index_select(0, kept))
    output, lse = output.view(*selected.shape, head_dim), lse.view(selected.shape)
    return list(zip(output.unbind(3), lse.unbind(3), strict=True))


def selected_runs_gradients(record: Record, blocks: Blocks, split: bool) -> None:
    """Add the gradients of `selected_runs_parts`."""
    assert record.lse is not None
    keys, values = _runs(record.key, blocks), _runs(record.value, blocks)
    sums = [torch.zeros_like(x, dtype=wide(x)) for x in (keys, values)]
    query_grad = record.query_grad.view(-1, record.query.shape[-1])
    for run, pair, source, mask in _tiles(blocks, record.key.shape[0], record.key.shape[1], split):
        query, output, grad = (_rows(x, source) for x in (record.query, record.output, record.grad))
        grad = grad.masked_fill((pair < 0)[:, None, :, None], 0.0)  # slots without a query get some query's rows
        lse = _rows(record.lse[..., None], source)[..., 0]
        heads = query, keys.index_select(0, run)[:, None], values.index_select(0, run)[:, None]
        found, *others = masked_gradients(*heads, mask, record.scaling, grad, output, lse)
        query_grad.index_add_(0, source.flatten(), found.flatten(0, 2).to(query_grad.dtype))
        for total, one in zip(sums, others, strict=True):
            total.index_add_(0, run, one[:, 0].to(total.dtype))
    whole = keys.shape[0] * keys.shape[1] // (record.key.shape[0] * record.key.shape[1])
    for grad, total in zip((record.key_grad, record.value_grad), sums, strict=True):
        grad[:, :, :whole] += total.view(*grad.shape[:2], whole, grad.shape[3])


def _runs(tensor: Tensor, blocks: Blocks) -> Tensor:
    """The whole runs of all heads: [batch * kv_heads * runs, block_size, head_dim]."""
    whole = blocks.length // blocks.block_size * blocks.block_size
    return tensor[:, :, :whole].reshape(-1, blocks.block_size, tensor.shape[-1])


def _rows(tensor: Tensor, source: Tensor) -> Tensor:
    """[batch, heads, q, head_dim] at [tiles, _TILE] of all heads' queries -> [tiles, 1, _TILE, head_dim]"""
    return tensor.reshape(-1, tensor.shape[-1]).index_select(0, source.flatten()).view(-1, 1, _TILE, tensor.shape[-1])


def _tiles(
    blocks: Blocks, batch: int, kv_heads: int, split: bool
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor | None]]:
    """Some tiles at a time.

    Yields:
        The run of each tile [tiles]; its (query, run) pairs [tiles, _TILE], an index into batch x heads x queries x
        chosen, -1 where there is none; the rows of the pairs' queries; and a mask [tiles, 1, _TILE, block_size].
    """
    selected = blocks.selected
    assert selected is not None
    whole = blocks.length // blocks.block_size
    wanted, order = sort_by_run(blocks, kv_heads, whole)
    served = int((selected >= 0).sum())
    wanted, order = wanted[:served], order[:served]
    slot, tile_run = _slots(wanted, batch * kv_heads * whole)
    pair = torch.full((tile_run.numel() * _TILE,), -1, device=selected.device).index_copy(0, slot, order)
    pair, source = pair.view(-1, _TILE), (pair.clamp(min=0) // selected.shape[-1]).view(-1, _TILE)
    step = max(1, CHUNK_ENTRIES // (_TILE * blocks.block_size))
    for tiles in torch.arange(tile_run.numel(), device=selected.device).split(step):
        mask = _mask(source[tiles], tile_run[tiles], blocks, whole) if split else None
        yield tile_run[tiles], pair[tiles], source[tiles], mask


def _mask(source: Tensor, run: Tensor, blocks: Blocks, whole: int) -> Tensor:
    row = (source % blocks.query_len + blocks.first)[:, None, :, None]
    column = (run % whole * blocks.block_size).view(-1, 1, 1, 1) + torch.arange(blocks.block_size, device=run.device)
    return (column >= blocks.sinks) & (row - column >= blocks.local)


def _slots(run: Tensor, num_runs: int) -> tuple[Tensor, Tensor]:
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
