"""Patterns as block masks for FlexAttention, in closed form: O(n) memory, never a mask of n x n.

Part of the `flex` kernel. Tokens of a permuted pattern go in the order of their ranks, so that what is near by rank is
near in memory. Superblocks of ranks are sorted by position: whole blocks of keys are then in a block of queries' future
and left out. Imports torch, patterns and what keeps things.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from sa_patch.kept import kept_for
from sa_patch.patterns import Band, Blocks
from sa_patch.randomness import inverse

BLOCK = 128  # queries and keys per block: what FlexAttention's own kernels are tuned for
_RANGES = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True, eq=False)
class Layout:
    """The tokens of a pattern in the order they are attended to; near is who has codes less than `width` apart.

    Attributes:
        queries: int64 [q], which query goes where; None: as they are. `place` is its inverse.
        keys: int64 [k], likewise for keys; filled up with any token.
        query_pos, key_pos: int32 [q], [k], positions; `length` where there is no token.
        query_code, key_code: int32, likewise: ranks, or numbers of runs.
        width: see above.
        ring: codes in all where they form a ring, or 0.
        sinks: this many keys at the front are the sinks.
        line: [k - front], codes in ascending order, before superblocks were sorted.
        front: keys before those of the line.
        superblock: this many keys of the line are sorted by position together.
    """

    queries: Tensor | None
    keys: Tensor | None
    place: Tensor | None
    query_pos: Tensor
    query_code: Tensor
    key_pos: Tensor
    key_code: Tensor
    width: int
    ring: int
    sinks: int
    line: Tensor
    front: int
    superblock: int


@dataclass(frozen=True, eq=False)
class Blocked:
    """A layout and the lists of blocks that its block mask is made of.

    Attributes:
        counts, indices: int32 [query blocks], [query blocks, most]: blocks of keys of which some pairs are visible.
        full_counts, full_indices: likewise, blocks of which all pairs are.
        limits: int32 [5], what `visible` compares with: width, ring, sinks, local, and the sinks that are shown.
    """

    layout: Layout
    counts: Tensor
    indices: Tensor
    full_counts: Tensor
    full_indices: Tensor
    limits: Tensor

    def mask(self) -> BlockMask:
        """The block mask, with the function that tells visible pairs of partial blocks."""
        layout = self.layout
        lists = (self.counts, self.indices, self.full_counts, self.full_indices)
        shown = visible(layout.query_pos, layout.query_code, layout.key_pos, layout.key_code, self.limits)
        return block_mask(*lists, shown, layout.query_pos.numel(), layout.key_pos.numel())


def visible(query_pos: Tensor, query_code: Tensor, key_pos: Tensor, key_code: Tensor, limits: Tensor) -> Callable:
    """Who sees whom, as FlexAttention asks it. Numbers are tensors, so that others don't compile it again."""

    def mask_mod(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        row, column = query_pos[query], key_pos[key]
        apart = (query_code[query] - key_code[key]).abs()
        near = torch.minimum(apart, limits[1] - apart) < limits[0]
        own = near & (column >= limits[2]) & (row - column >= limits[3])
        return (column <= row) & (own | (column < limits[4]))

    return mask_mod


def block_mask(
    counts: Tensor, indices: Tensor, full_counts: Tensor, full_indices: Tensor, mask_mod: Callable, q: int, k: int
) -> BlockMask:
    """FlexAttention's object, from lists as short as they are: it wants rows as long as there are blocks of keys."""
    columns = -(-k // BLOCK)
    return BlockMask.from_kv_blocks(
        *(counts[None, None], _as_wide(indices, columns), full_counts[None, None], _as_wide(full_indices, columns)),
        BLOCK_SIZE=BLOCK,
        mask_mod=mask_mod,
        seq_lengths=(q, k),
        compute_q_blocks=False,
    )


def _as_wide(indices: Tensor, columns: int) -> Tensor:
    """[1, 1, rows, columns] seen in the memory of [rows, most]: nobody reads a row beyond its count."""
    rows, most = indices.shape
    flat = F.pad(indices.flatten(), (0, max(0, columns - most)))
    return flat.as_strided((1, 1, rows, columns), (flat.numel(), flat.numel(), most, 1))


def kept_blocks(pattern: Band | Blocks, device: torch.device, *, split: bool, show_sinks: bool = True) -> Blocked:
    """The block lists of a pattern's own part and sinks, made once for all calls and layers where that can be told.

    Args:
        split: leave out the pairs that the local window opens; otherwise there is none.
        show_sinks: False where another pass shows them.
    """
    name = ("blocks", split, show_sinks, pattern.sinks, pattern.local)
    return kept_for(pattern, name, device, lambda: make_blocks(pattern, device, split=split, show_sinks=show_sinks))


def make_blocks(pattern: Band | Blocks, device: torch.device, *, split: bool, show_sinks: bool = True) -> Blocked:
    """`kept_blocks`, made anew."""
    layout = _plain_layout(pattern, device) if pattern.order is None else _permuted_layout(pattern, pattern.order)
    local, shown = pattern.local if split else 0, layout.sinks if show_sinks else 0
    lists = _list_blocks(layout, _ranges(layout, shown), local)
    limits = [layout.width, layout.ring or 1 << 30, layout.sinks, local, shown]
    return Blocked(layout, *lists, torch.tensor(limits, dtype=torch.int32, device=device))


def superblock_for(width: int) -> int:
    """Ranks that are sorted by position together, for a band of that width: m blocks of them.

    A block of queries meets 2c + 1 superblocks, c = (width - 1) / S rounded up, and visits (m + 1) / 2m of their keys.
    """

    def visited(size: int) -> int:
        return (2 * -(-(width - 1) // size) + 1) * (size + BLOCK)

    return min((BLOCK << power for power in range(6)), key=visited)


def _plain_layout(pattern: Band | Blocks, device: torch.device) -> Layout:
    position = torch.arange(pattern.length, dtype=torch.int32, device=device)
    code = position if isinstance(pattern, Band) else position // pattern.block_size
    width = pattern.width if isinstance(pattern, Band) else 1
    mine = slice(pattern.first, None)
    sinks = min(pattern.sinks, pattern.length)
    return Layout(None, None, None, position[mine], code[mine], position, code, width, 0, sinks, code, 0, 1)


def _permuted_layout(pattern: Band | Blocks, order: Tensor) -> Layout:
    n, first, low = pattern.length, pattern.first, min(pattern.sinks, pattern.length)
    rank = torch.arange(order.numel(), device=order.device)
    code = rank if isinstance(pattern, Band) else rank // pattern.block_size
    width, superblock = (pattern.width, superblock_for(pattern.width)) if isinstance(pattern, Band) else (1, 1)
    keys, key_code = _present(order, code, low, n)
    line = key_code
    queries, query_code = _present(order, code, first, n)
    if superblock > 1:
        (keys, key_code), (queries, query_code) = (
            _sort_superblocks(tokens, codes, superblock, order.numel())
            for tokens, codes in ((keys, key_code), (queries, query_code))
        )
    # The sinks come before the others, alone in their blocks.
    front = -(-low // BLOCK) * BLOCK
    sinks = torch.arange(front, device=order.device)
    keys = torch.cat([torch.where(sinks < low, sinks, n), keys])
    key_code = F.pad(key_code, (front, 0))
    ring = order.numel() if isinstance(pattern, Band) and pattern.circular else 0
    place = inverse(queries - first)
    numbers = queries.int(), query_code.int(), keys.int(), key_code.int()
    index = queries - first, keys.clamp(max=n - 1), place
    return Layout(*index, *numbers, width, ring, low, line, front, superblock)


def _present(order: Tensor, code: Tensor, low: int, high: int) -> tuple[Tensor, Tensor]:
    """The tokens from low to high - 1 in that order, and their codes. Doesn't wait for the device."""
    if low == 0 and high == order.numel():
        return order, code
    there = (order >= low) & (order < high)
    slot = torch.where(there, there.cumsum(0) - 1, high - low)
    tokens, codes = (order.new_empty(high - low + 1).scatter_(0, slot, x)[:-1] for x in (order, code))
    return tokens, codes


def _sort_superblocks(tokens: Tensor, codes: Tensor, size: int, horizon: int) -> tuple[Tensor, Tensor]:
    number = torch.arange(tokens.numel(), device=tokens.device) // size
    order = torch.argsort(number * horizon + tokens)
    return tokens[order], codes[order]


def _ranges(layout: Layout, shown: int) -> _RANGES:
    """Ranges of key blocks (from, to) that hold every visible key of a block of queries; int64 [query blocks] each."""
    low, high = _extent(layout.query_code)
    side, size, line = layout.width - 1, layout.superblock, layout.line.contiguous()
    ahead = 0 if layout.keys is None else side  # in the order of positions, later codes are in the future
    last = -(-layout.key_pos.numel() // BLOCK)
    ranges = []
    if shown:
        ranges.append((torch.zeros_like(low), torch.full_like(low, -(-shown // BLOCK))))
    for turn in (0, -layout.ring, layout.ring) if layout.ring else (0,):
        begin = torch.searchsorted(line, (low - side + turn).to(line.dtype)) // size * size
        end = torch.searchsorted(line, (high + ahead + turn).to(line.dtype), right=True)
        begin, end = begin + layout.front, -(-end // size) * size + layout.front
        # Nothing in reach: an empty range.
        empty = end <= begin
        ranges.append((begin // BLOCK, torch.where(empty, begin // BLOCK, (-(-end // BLOCK)).clamp(max=last))))
    return ranges


def _extent(values: Tensor) -> tuple[Tensor, Tensor]:
    """The smallest and largest value of every block: int64 [blocks]; the last one is filled up with its last value."""
    missing = -values.numel() % BLOCK
    padded = torch.cat([values, values[-1:].expand(missing)]).view(-1, BLOCK).long()
    return padded.amin(dim=1), padded.amax(dim=1)


def _list_blocks(layout: Layout, ranges: _RANGES, local: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(partial counts, partial indices, full counts, full indices) from ranges of candidates."""
    query_pos, key_pos, query_code, key_code = (
        _extent(x) for x in (layout.query_pos, layout.key_pos, layout.query_code, layout.key_code)
    )
    last = key_pos[0].numel() - 1
    columns, seen = [], []
    for number, (begin, end) in enumerate(ranges):
        index = begin[:, None] + torch.arange(int((end - begin).max()), device=begin.device)
        wanted = index < end[:, None]
        for earlier_begin, earlier_end in ranges[:number]:  # no block twice
            wanted &= (index < earlier_begin[:, None]) | (index >= earlier_end[:, None])
        columns.append(index.clamp(max=last))
        seen.append(wanted)
    index, seen = torch.cat(columns, dim=1), torch.cat(seen, dim=1)
    seen &= key_pos[0][index] <= query_pos[1][:, None]
    apart = torch.maximum(query_code[1][:, None] - key_code[0][index], key_code[1][index] - query_code[0][:, None])
    full = seen & (key_pos[1][index] <= query_pos[0][:, None]) & (apart < layout.width)
    # Among the sinks, beside the window, and at the end, where keys may be missing, pairs are looked at one by one.
    full &= (key_pos[0][index] >= layout.sinks) & (index < last)
    if local:
        full &= query_pos[0][:, None] - key_pos[1][index] >= local
    return *compact(index, seen & ~full), *compact(index, full)


def compact(index: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """The wanted entries of every row, in front and ascending: (counts [rows], indices [rows, columns]), int32."""
    key = torch.where(wanted, index, torch.iinfo(torch.int64).max)
    return wanted.sum(dim=1).int(), index.gather(1, key.argsort(dim=1, stable=True)).int().contiguous()
