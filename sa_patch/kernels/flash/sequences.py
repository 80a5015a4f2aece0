"""Patterns as packed sequences for FlashAttention: where each begins, and in which order its tokens go.

Part of the `flash` kernel. A sequence's queries are its last positions. Imports torch, patterns and what keeps things.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sa_patch.kept import KEPT, kept_for
from sa_patch.patterns import Blocks


@dataclass(frozen=True, eq=False)
class Sequences:
    """Packed sequences.

    Attributes:
        query_ends, key_ends: int32 [sequences + 1], cumulative lengths, from 0.
        most_queries, most_keys: of any sequence, at least.
        queries, keys: int64, which tokens of a row go where; None: in the order they are.
        place: int64, the inverse of `queries`.
    """

    query_ends: Tensor
    key_ends: Tensor
    most_queries: int
    most_keys: int
    queries: Tensor | None = None
    keys: Tensor | None = None
    place: Tensor | None = None


def window_sequences(batch: int, num_queries: int, num_keys: int, device: torch.device) -> Sequences:
    """A row is a sequence."""

    def make() -> Sequences:
        row = torch.arange(batch + 1, dtype=torch.int32, device=device)
        return Sequences(row * num_queries, row * num_keys, num_queries, num_keys)

    return KEPT.get(("rows", batch, num_queries, num_keys), device, make)


def kept_sequences(blocks: Blocks, batch: int, device: torch.device) -> Sequences:
    """`run_sequences`, from the cache."""
    return kept_for(blocks, ("runs", batch, blocks.sinks), device, lambda: run_sequences(blocks, batch, device))


def run_sequences(blocks: Blocks, batch: int, device: torch.device) -> Sequences:
    """A run of the order is a sequence; keys and queries among the sinks are left out and not counted.

    Nothing here waits for the device. Tokens of the horizon that have not come yet take no place.
    """
    size, low = blocks.block_size, blocks.sinks
    first = max(blocks.first, low)
    order = torch.arange(blocks.length, device=device) if blocks.order is None else blocks.order
    keys, key_ends = _packed(order, low, blocks.length, size)
    queries, query_ends = _packed(order, first, blocks.length, size)
    place = torch.empty_like(queries).scatter_(0, queries, torch.arange(queries.numel(), device=device))
    row = torch.arange(batch, device=device)[:, None]

    def all_ends(part: Tensor, inner: Tensor) -> Tensor:
        last = inner.new_full((1,), batch * part.numel())
        return torch.cat([(row * part.numel() + inner[:-1]).flatten(), last]).int()

    sequences = Sequences(all_ends(queries, query_ends), all_ends(keys, key_ends), size, size)
    return sequences if blocks.order is None else replace(sequences, queries=queries, keys=keys, place=place)


def _packed(order: Tensor, low: int, high: int, size: int) -> tuple[Tensor, Tensor]:
    """The positions from low to high - 1 in that order, less low; and how many of them the runs before each hold."""
    there = (order >= low) & (order < high)
    rank = there.cumsum(0)
    slot = torch.where(there, rank - 1, high - low)
    packed = torch.empty(high - low + 1, dtype=torch.int64, device=order.device).scatter_(0, slot, order - low)
    ends = torch.cat([rank.new_zeros(1), rank[size - 1 :: size], rank[-1:]])
    return packed[:-1], ends


@dataclass(frozen=True, eq=False)
class Requests:
    """(query, run) pairs as sequences: the queries that asked for a run, and the run.

    Attributes:
        order: int64 [pairs], pairs (index into batch x heads x queries x chosen) sorted by the run they want.
        served: bool [pairs], in that order; the pairs that want no run come last.
        sequences: over the pairs, and all keys of all kv heads.
    """

    order: Tensor
    served: Tensor
    sequences: Sequences


def run_requests(blocks: Blocks, kv_heads: int) -> Requests:
    """The selected runs of a pattern, keys among the sinks left out. Waits for the device once: how many want one run.

    FlashAttention's grid is as high as the longest sequence; without the number it would be n x heads high for each.
    """
    selected, size, length = blocks.selected, blocks.block_size, blocks.length
    assert selected is not None
    batch, heads = selected.shape[:2]
    whole, device = length // size, selected.device
    # Every kv head's keys: those among the sinks that no run may show, the whole runs, and what is left.
    parts = whole + 2
    row, head = torch.arange(batch, device=device), torch.arange(heads, device=device)
    owner = (row[:, None] * kv_heads + head // (heads // kv_heads)) * parts + 1
    none = batch * kv_heads * parts
    wanted = torch.where(selected < 0, none, selected + owner[..., None, None]).flatten()
    wanted, order = wanted.sort(stable=True)
    query_ends = torch.searchsorted(wanted, torch.arange(none + 1, device=device)).int()
    starts = (torch.arange(whole + 1, device=device) * size).clamp(min=min(blocks.sinks, length))
    lines = torch.arange(batch * kv_heads, device=device)[:, None] * length
    inner = torch.cat([starts.new_zeros(1), starts])
    key_ends = torch.cat([(lines + inner).flatten(), starts.new_full((1,), batch * kv_heads * length)]).int()
    most = max(1, int(query_ends.diff().max()))
    return Requests(order, wanted < none, Sequences(query_ends, key_ends, most, size))
