"""Patterns as packed sequences for FlashAttention: where each begins, and the order of its tokens.

Belongs to the `flash` kernel. A sequence's queries are its last positions.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sa_patch.kept import KEPT, kept_for
from sa_patch.kernels.requests import sort_by_run
from sa_patch.patterns import Blocks


@dataclass(frozen=True, eq=False)
class Sequences:
    """Packed sequences.

    Attributes:
        query_ends, key_ends: int32 [sequences + 1], cumulative lengths, from 0.
        most_queries, most_keys: upper bounds for the lengths of a sequence.
        queries, keys: int64, the tokens of a row of the batch in the order in which they are packed; None: theirs.
        slot: int64, where each query's result is: the inverse of `queries`.
    """

    query_ends: Tensor
    key_ends: Tensor
    most_queries: int
    most_keys: int
    queries: Tensor | None = None
    keys: Tensor | None = None
    slot: Tensor | None = None


def window_sequences(batch: int, num_queries: int, num_keys: int, device: torch.device) -> Sequences:
    """Every row of the batch is a sequence."""

    def make() -> Sequences:
        row = torch.arange(batch + 1, dtype=torch.int32, device=device)
        return Sequences(row * num_queries, row * num_keys, num_queries, num_keys)

    return KEPT.get(("rows", batch, num_queries, num_keys), device, make)


def kept_sequences(blocks: Blocks, batch: int, device: torch.device) -> Sequences:
    """`run_sequences`, from the cache."""
    return kept_for(blocks, ("runs", batch, blocks.sinks), device, lambda: run_sequences(blocks, batch, device))


def run_sequences(blocks: Blocks, batch: int, device: torch.device) -> Sequences:
    """A run of the order is a sequence; keys and queries among the sinks are left out, and not counted.

    Doesn't wait for the device. Tokens of the horizon beyond `length` are left out.
    """
    size, low = blocks.block_size, blocks.sinks
    first = max(blocks.first, low)
    order = torch.arange(blocks.length, device=device) if blocks.order is None else blocks.order
    keys, key_ends = _packed(order, low, blocks.length, size)
    queries, query_ends = _packed(order, first, blocks.length, size)
    slot = torch.empty_like(queries).scatter_(0, queries, torch.arange(queries.numel(), device=device))
    row = torch.arange(batch, device=device)[:, None]

    def all_ends(tokens: Tensor, inner: Tensor) -> Tensor:
        last = inner.new_full((1,), batch * tokens.numel())
        return torch.cat([(row * tokens.numel() + inner[:-1]).flatten(), last]).int()

    sequences = Sequences(all_ends(queries, query_ends), all_ends(keys, key_ends), size, size)
    return sequences if blocks.order is None else replace(sequences, queries=queries, keys=keys, slot=slot)


def _packed(order: Tensor, low: int, high: int, size: int) -> tuple[Tensor, Tensor]:
    """The positions low .. high - 1 in that order, minus low; and the cumulative lengths of their runs, from 0."""
    there = (order >= low) & (order < high)
    rank = there.cumsum(0)
    slot = torch.where(there, rank - 1, high - low)
    packed = torch.empty(high - low + 1, dtype=torch.int64, device=order.device).scatter_(0, slot, order - low)
    ends = torch.cat([rank.new_zeros(1), rank[size - 1 :: size], rank[-1:]])
    return packed[:-1], ends


@dataclass(frozen=True, eq=False)
class Requests:
    """(query, run) pairs as sequences: the queries that want a run, and the run's keys.

    Attributes:
        order: int64 [pairs], pairs (index into batch x heads x queries x chosen) sorted by the run they want.
        served: bool [pairs], which of `order` want a run; those that don't come last.
        sequences: over the pairs, and all keys of all kv heads.
    """

    order: Tensor
    served: Tensor
    sequences: Sequences


def run_requests(blocks: Blocks, kv_heads: int) -> Requests:
    """The selected runs of a pattern, without keys among the sinks.

    Waits for the device once, for the length of the longest sequence: FlashAttention starts as many programs per
    sequence as that one needs, which without the number would be enough for n x heads queries.
    """
    assert blocks.selected is not None
    size, length, batch, device = blocks.block_size, blocks.length, blocks.selected.shape[0], blocks.selected.device
    whole = length // size
    # Sequences of a kv head's keys: those among the sinks, which no run may show, the whole runs, and the rest.
    none = batch * kv_heads * (whole + 2)
    wanted, order = sort_by_run(blocks, kv_heads, whole + 2, offset=1)
    query_ends = torch.searchsorted(wanted, torch.arange(none + 1, device=device)).int()
    starts = (torch.arange(whole + 1, device=device) * size).clamp(min=min(blocks.sinks, length))
    lines = torch.arange(batch * kv_heads, device=device)[:, None] * length
    inner = torch.cat([starts.new_zeros(1), starts])
    key_ends = torch.cat([(lines + inner).flatten(), starts.new_full((1,), batch * kv_heads * length)]).int()
    most = max(1, int(query_ends.diff().max()))
    return Requests(order, wanted < none, Sequences(query_ends, key_ends, most, size))
