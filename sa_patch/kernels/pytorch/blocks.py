"""Blocks patterns in O(n x visible keys) time and O(n) memory beyond the inputs. Belongs to the `torch` kernel.

The own runs are batched causal attention, or tiles where only some tokens are queries; selected runs are merged with
them by log-sum-exp.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from sa_patch.kernels.dense import fused
from sa_patch.kernels.merging import Part, merge
from sa_patch.kernels.pytorch.parts import CHUNK_ENTRIES, Record, empty_part, masked_part, select_tokens
from sa_patch.kernels.pytorch.selected_runs import selected_runs_gradients, selected_runs_parts
from sa_patch.kernels.pytorch.tile_gradients import tiles_gradients
from sa_patch.kernels.pytorch.tiles import Tiles, tiles_part
from sa_patch.patterns import Blocks

_ROWS = 64  # queries of an own run that are computed in one step, with the keys up to the last of them


def blocks_part(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    blocks: Blocks,
    scaling: float,
    *,
    split: bool,
    with_lse: bool = False,
    into: Tensor | None = None,
) -> Part:
    """Attention to own and selected runs.

    Args:
        query: [batch, heads, query_len, head_dim]; key, value: [batch, kv_heads, length, head_dim].
        split: sinks and local window are parts of their own, to be merged: leave out the pairs that they show.
        with_lse: return the log-sum-exp where nothing is merged, too.
        into: where the output goes; a new tensor if None.

    Returns:
        (output [batch, heads, query_len, head_dim], log-sum-exp [batch, heads, query_len] or None)
    """
    chosen = blocks.selected is not None and blocks.selected.shape[-1] > 0
    with_lse = with_lse or split or chosen
    place = None if chosen else into
    if _whole(blocks) and not split and (query.device.type == "cpu" or not with_lse):
        own = _own_runs(query, key, value, blocks, scaling, with_lse=with_lse, into=place)
    else:
        tiles, exclude = run_tiles(blocks, query.device), blocks if split else None
        own = tiles_part(query, key, value, tiles, scaling, with_lse=with_lse, exclude=exclude, into=place)
    if not chosen:
        return own
    output, lse = merge([own, *selected_runs_parts(query, key, value, blocks, scaling, split)])
    return output if into is None else into.copy_(output), lse


def blocks_gradients(record: Record, blocks: Blocks, *, split: bool) -> None:
    """Add the gradients of `blocks_part`."""
    tiles_gradients(record, run_tiles(blocks, record.query.device), blocks if split else None)
    if blocks.selected is not None and blocks.selected.shape[-1] > 0:
        selected_runs_gradients(record, blocks, split)


def _whole(blocks: Blocks) -> bool:
    """True where every token of the order is a query."""
    return blocks.query_len == (blocks.length if blocks.order is None else blocks.order.numel())


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
    keys = position[:, :span].clamp(max=blocks.length)
    whole = _whole(blocks)
    line = (keys.flatten(), span) if whole else None
    return Tiles(queries, keys, None if whole else slot, line=line, causal=whole)


def _own_runs(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    blocks: Blocks,
    scaling: float,
    *,
    with_lse: bool,
    into: Tensor | None,
) -> Part:
    """Whole sequences without extras: the own runs are a batch of short causal sequences."""
    size, batch, length = blocks.block_size, query.shape[0], query.shape[2]
    # A few runs at a time: what is gathered stays in the CPU's caches, and no large buffer is allocated.
    step = max(1, CHUNK_ENTRIES // (batch * query.shape[1] * size * query.shape[3])) * size
    edge = length // size * size
    starts = [(start, min(start + step, edge), size) for start in range(0, edge, step)]
    output, lse = empty_part(query, with_lse=with_lse, into=into)
    for start, stop, run in [*starts, *([(edge, length, length - edge)] if edge < length else [])]:
        q, k, v = (_runs(_ranks(tensor, blocks.order, start, stop), run) for tensor in (query, key, value))
        rank = torch.arange(start, stop, device=query.device).view(-1, run)
        place = rank if blocks.order is None else blocks.order[start:stop].view(-1, run)
        for rows, found, found_lse in _causal_steps(q, k, v, scaling, with_lse=with_lse):
            index = place[:, rows].flatten()
            output.index_copy_(2, index, _unruns(found, batch))
            if lse is not None and found_lse is not None:
                lse.index_copy_(2, index, _unruns(found_lse, batch))
    return output, lse


def _causal_steps(
    query: Tensor, key: Tensor, value: Tensor, scaling: float, *, with_lse: bool
) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
    """Causal attention of a batch of short sequences, some rows of all of them at a time.

    PyTorch's CPU kernel skips the future only beyond 512 keys. Steps with a mask that all runs share compute
    (size + 64) / 2 keys per query instead of all: 30 % faster at 255 keys, 12 % at 1,023.

    Args:
        query: [runs, heads, size, head_dim]; key, value: [runs, kv_heads, size, head_dim].
        with_lse: on a CPU only.

    Yields:
        The rows, their output [runs, heads, rows, head_dim] and log-sum-exp [runs, heads, rows] or None.
    """
    size = query.shape[2]
    if not with_lse and (query.device.type != "cpu" or size <= _ROWS):
        yield slice(0, size), fused(query, key, value, scaling, causal=True), None
        return
    position = torch.arange(size)
    for start in range(0, size, _ROWS):
        rows = slice(start, min(start + _ROWS, size))
        mask = position[: rows.stop] <= position[rows, None]
        heads = query[:, :, rows], key[:, :, : rows.stop], value[:, :, : rows.stop]
        if with_lse:
            yield rows, *masked_part(*heads, mask[None, None], scaling, all_see=True)
        else:
            yield rows, fused(*heads, scaling, mask), None


def _ranks(tensor: Tensor, order: Tensor | None, start: int, stop: int) -> Tensor:
    """The tokens of some ranks: [batch, heads, stop - start, head_dim]."""
    return tensor[:, :, start:stop] if order is None else select_tokens(tensor, order[start:stop])


def _runs(tensor: Tensor, size: int) -> Tensor:
    """[batch, heads, m * size, ...] -> [batch * m, heads, size, ...]"""
    return tensor.unflatten(2, (-1, size)).transpose(1, 2).flatten(0, 1)


def _unruns(tensor: Tensor, batch: int) -> Tensor:
    """The inverse of `_runs`."""
    return tensor.unflatten(0, (batch, -1)).transpose(1, 2).flatten(2, 3)
