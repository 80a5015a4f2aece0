"""Blocks patterns with plain PyTorch, O(n x visible keys) time and O(n) memory beyond the inputs.

The own runs are batched causal attention. For selected runs the queries of each run are collected (as experts collect
tokens), attend to it together, and are merged by log-sum-exp. Part of the `torch` kernel.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from sa_patch.kernels.dense import fused
from sa_patch.kernels.partial import CHUNK_ENTRIES, Part, attend, merge
from sa_patch.patterns import Blocks
from sa_patch.randomness import inverse

_TILE = 64  # queries that attend to one selected run together


def attend_blocks(query: Tensor, key: Tensor, value: Tensor, blocks: Blocks, scaling: float, *, part: bool) -> Part:
    """Own and selected runs of every query.

    Args:
        query: [batch, heads, n, head_dim]; key, value: [batch, kv_heads, n, head_dim].
        part: leave out the pairs that sinks and local open, and return what `merge` needs.

    Returns:
        (output [batch, heads, n, head_dim], log-sum-exp [batch, heads, n] or None)
    """
    selected = blocks.selected
    if blocks.order is not None:
        query, key, value = (tensor.index_select(2, blocks.order) for tensor in (query, key, value))
    if selected is None and not part:
        output, lse = _own_runs_fused(query, key, value, blocks.block_size, scaling), None
    else:
        output, lse = _own_runs(query, key, value, blocks, scaling, part)
    if blocks.order is not None:
        ranks = inverse(blocks.order)
        output = output.index_select(2, ranks)
        lse = None if lse is None else lse.index_select(2, ranks)
    if selected is None or selected.shape[-1] == 0:
        return output, lse
    chosen = _selected_runs(query, key, value, blocks, selected, scaling, part)
    return merge([(output, lse), *chosen])


def _runs(tensor: Tensor, size: int) -> Tensor:
    """[batch, heads, m * size, ...] -> [batch * m, heads, size, ...]"""
    return tensor.unflatten(2, (-1, size)).transpose(1, 2).flatten(0, 1)


def _unruns(tensor: Tensor, batch: int) -> Tensor:
    """The inverse of `_runs`."""
    return tensor.unflatten(0, (batch, -1)).transpose(1, 2).flatten(2, 3)


def _own_runs_fused(query: Tensor, key: Tensor, value: Tensor, size: int, scaling: float) -> Tensor:
    batch, whole = query.shape[0], query.shape[2] // size * size
    pieces = []
    if whole:
        q, k, v = (_runs(tensor[:, :, :whole], size) for tensor in (query, key, value))
        pieces.append(_unruns(fused(q, k, v, scaling, causal=True), batch))
    if whole < query.shape[2]:
        q, k, v = (tensor[:, :, whole:] for tensor in (query, key, value))
        pieces.append(fused(q, k, v, scaling, causal=True))
    return torch.cat(pieces, dim=2)


def _own_runs(query: Tensor, key: Tensor, value: Tensor, blocks: Blocks, scaling: float, part: bool):
    """Own runs with log-sum-exps. The last run is filled up; what fills it comes after every real query."""
    batch, heads, length, _ = query.shape
    size = blocks.block_size
    fill = -length % size
    order = torch.arange(length, device=query.device) if blocks.order is None else blocks.order
    position = F.pad(order, (0, fill), value=length).view(-1, size)
    queries, keys, values = (_runs(F.pad(tensor, (0, 0, 0, fill)), size) for tensor in (query, key, value))
    num_runs = position.shape[0]
    step = max(1, CHUNK_ENTRIES // (heads * size * size))
    outputs, lses = [], []
    for start in range(0, batch * num_runs, step):
        here = slice(start, min(start + step, batch * num_runs))
        index = torch.arange(here.start, here.stop, device=query.device)
        row, column = position[index % num_runs, :, None], position[index % num_runs, None]
        mask = column <= row
        if part:
            mask &= (column >= blocks.sinks) & (row - column >= blocks.local)
        output, lse = attend(queries[here], keys[here], values[here], mask[:, None], scaling)
        outputs.append(output)
        lses.append(lse)
    output, lse = _unruns(torch.cat(outputs), batch), _unruns(torch.cat(lses), batch)
    return output[:, :, :length], lse[:, :, :length]


def _selected_runs(
    query: Tensor, key: Tensor, value: Tensor, blocks: Blocks, selected: Tensor, scaling: float, part: bool
) -> list[Part]:
    """One (output, log-sum-exp) per selected run: k pairs of [batch, heads, n, head_dim] and [batch, heads, n]."""
    size = blocks.block_size
    batch, heads, length, num_chosen = selected.shape
    kv_heads, whole, head_dim = key.shape[1], length // size, query.shape[-1]
    group = heads // kv_heads
    # Sort the (query, run) pairs by the run they want; -1 sorts last and is cut off.
    row, head = torch.arange(batch, device=query.device), torch.arange(heads, device=query.device)
    base = (row[:, None] * kv_heads + head // group) * whole
    wanted = torch.where(selected < 0, batch * kv_heads * whole, selected + base[..., None, None]).flatten()
    order = torch.argsort(wanted, stable=True)
    order = order[: int((selected >= 0).sum())]
    slot, tile_run = _tile(wanted[order], batch * kv_heads * whole)
    pair = torch.full((tile_run.numel() * _TILE,), -1, device=query.device).index_copy(0, slot, order)
    pair, source = pair.view(-1, _TILE), (pair.clamp(min=0) // num_chosen).view(-1, _TILE)
    keys = key[:, :, : whole * size].reshape(-1, size, head_dim)
    values = value[:, :, : whole * size].reshape(-1, size, head_dim)
    flat = query.reshape(-1, head_dim)
    step = max(1, CHUNK_ENTRIES // (_TILE * size))
    outputs, lses = [], []
    for tiles in torch.arange(tile_run.numel(), device=query.device).split(step):
        mask = _selected_mask(source[tiles], tile_run[tiles], blocks, length, whole) if part else None
        run = tile_run[tiles]
        output, lse = attend(flat[source[tiles]][:, None], keys[run][:, None], values[run][:, None], mask, scaling)
        outputs.append(output.flatten(0, 2))
        lses.append(lse.flatten())
    kept = pair.flatten() >= 0
    target = pair.flatten()[kept]
    total = selected.numel()
    output = query.new_zeros(total, head_dim, dtype=torch.float32)
    lse = query.new_full((total,), -torch.inf, dtype=torch.float32)
    if outputs:
        output = output.index_copy(0, target, torch.cat(outputs)[kept])
        lse = lse.index_copy(0, target, torch.cat(lses)[kept])
    output, lse = output.view(*selected.shape, head_dim), lse.view(selected.shape)
    return list(zip(output.unbind(3), lse.unbind(3), strict=True))


def _selected_mask(source: Tensor, run: Tensor, blocks: Blocks, length: int, whole: int) -> Tensor:
    row = (source % length)[:, None, :, None]
    column = (run % whole * blocks.block_size).view(-1, 1, 1, 1) + torch.arange(blocks.block_size, device=run.device)
    return (column >= blocks.sinks) & (row - column >= blocks.local)


def _tile(run: Tensor, num_runs: int) -> tuple[Tensor, Tensor]:
    """Cut sorted requests into tiles of `_TILE` that all want one run.

    Args:
        run: int64 [requests], ascending.

    Returns:
        (slot of each request among tiles x _TILE slots, the run each tile wants)
    """
    count = torch.bincount(run, minlength=num_runs)
    tiles = -(-count // _TILE)
    first = tiles.cumsum(0) - tiles
    within = torch.arange(run.numel(), device=run.device) - (count.cumsum(0) - count)[run]
    return first[run] * _TILE + within, torch.repeat_interleave(torch.arange(num_runs, device=run.device), tiles)
