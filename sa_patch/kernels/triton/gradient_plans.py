"""Plans of the backward pass: the forward's tiles for queries, and the same pattern seen from its keys.

Seen from its keys, a band is a band and a bucket the same bucket: tiles of keys with lists of the queries that are
near. What a key must not see is its past. So positions count from the end, and these plans are like those of queries.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from sa_patch.kept import kept_for
from sa_patch.kernels.triton.plans import Extras, Plan, band_lists, kept_plan, listed
from sa_patch.kernels.triton.tile_sizes import tiles_per_list
from sa_patch.patterns import Band, Blocks

_SEGMENT = 512  # queries whose gradients of the sinks are added up by one program


def listed_pattern(pattern: Band | Blocks, device: torch.device) -> Band | Blocks:
    """The pattern with an order of its own, so that its plans are lists."""
    if pattern.order is not None:
        return pattern
    return replace(pattern, order=torch.arange(pattern.length, device=device), source="identity")


def queries_plan(pattern: Band | Blocks, tokens: int, step: int, device: torch.device) -> Plan:
    """Tiles of `tokens` queries with their keys, sinks first; a pattern with an order.

    Args:
        step: keys per step.
    """
    tiles = tiles_per_list(pattern.width, tokens) if isinstance(pattern, Band) else 1
    return kept_plan(pattern, tokens, step, tiles, Extras(pattern.sinks, sinks=True), device)


def keys_plan(pattern: Band | Blocks, rows: int, step: int, device: torch.device) -> Plan:
    """Tiles of `rows` keys with the queries that see them, sinks left out; positions count from the end.

    Args:
        step: queries per step.
    """
    return kept_for(
        pattern, ("keys", rows, step, pattern.sinks), device, lambda: _keys_plan(pattern, rows, step, device)
    )


def _keys_plan(pattern: Band | Blocks, rows: int, step: int, device: torch.device) -> Plan:
    assert pattern.order is not None
    if isinstance(pattern, Band):
        block = rows * tiles_per_list(pattern.width, rows)
        keys, key_rank, queries, query_rank = band_lists(pattern, pattern.order, block, 0, pattern.first, device)
        width = pattern.width
    else:
        keys, queries = _runs(pattern, pattern.order, rows)
        key_rank, query_rank, width = keys, queries, 0
    keys = keys.masked_fill(keys < pattern.sinks, pattern.length)
    found = _from_end(keys, pattern), key_rank, _from_end(queries, pattern), query_rank
    return listed(*found, rows, step, pattern.length, width, Extras())


def _runs(blocks: Blocks, order: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """The keys of every run, a multiple of `rows`, and its queries; `length` in empty slots."""
    size, length = blocks.block_size, blocks.length
    position = F.pad(order, (0, -order.numel() % size), value=length).view(-1, size).clamp(max=length)
    return F.pad(position, (0, -size % rows), value=length), position.masked_fill(position < blocks.first, length)


def sinks_plan(pattern: Band | Blocks, rows: int, step: int, device: torch.device) -> Plan:
    """Tiles of the sinks, `rows` each, once for every segment of the queries; positions count from the end."""
    segments, absent = -(-pattern.query_len // _SEGMENT), pattern.length
    sinks = torch.arange(min(pattern.sinks, absent), device=device)
    keys = F.pad(sinks, (0, -sinks.numel() % rows), value=absent).expand(segments, -1)
    queries = torch.arange(pattern.first, pattern.first + segments * _SEGMENT, device=device)
    queries = queries.clamp(max=absent).view(segments, _SEGMENT)
    keys, queries = _from_end(keys, pattern), _from_end(queries, pattern)
    return listed(keys, keys, queries, queries, rows, step, absent, 0, Extras())


def _from_end(position: Tensor, pattern: Band | Blocks) -> Tensor:
    """Positions counted from the end; empty slots stay."""
    return torch.where(position < pattern.length, pattern.length - 1 - position, pattern.length)
