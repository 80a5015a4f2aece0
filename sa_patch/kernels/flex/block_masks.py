"""Patterns as block masks for FlexAttention, in closed form: O(n) memory, never a mask of n x n.

Belongs to the `flex` kernel. Tokens of a permuted pattern are laid out in the order of their ranks, so that tokens near
by rank are near in memory. Superblocks of ranks are sorted by position: whole blocks of keys are then later than all of
a block's queries, and left out.
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
    """The order in which FlexAttention gets the tokens of a pattern. A token's code is its rank, or its run's number.

    Attributes:
        queries: int64 [q], the query in each slot; None: the order of positions.
        keys: int64 [k], the key in each slot, any key in empty ones; None: the order of positions.
        slot: int64 [q], where each query's result is: the inverse of `queries`.
        query_pos, key_pos: int32 [q], [k], positions; `length` in empty slots.
        query_code, key_code: int32 [q], [k].
        width: a key is near if |query_code - key_code| < width.
        ring: the number of codes if they form a ring, or 0.
        sinks: how many sinks there are.
        line: [k - front], the codes of the keys in ascending order, before superblocks were sorted.
        front: slots at the front, for the sinks; those of the line come after.
        superblock: this many keys of the line are sorted by position together.
    """

    queries: Tensor | None
    keys: Tensor | None
    slot: Tensor | None
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
        counts, indices: int32 [query blocks], [query blocks, most]: the blocks of keys with some visible pairs.
        full_counts, full_indices: the blocks of keys of which all pairs are visible; same shapes.
        limits: int32 [5], what `visible` compares with: width, ring, sinks, local, and the sinks that are shown.
    """

    layout: Layout
    counts: Tensor
    indices: Tensor
    full_counts: Tensor
    full_indices: Tensor
    limits: Tensor

    def mask(self) -> BlockMask:
        """FlexAttention's block mask, with the mask function for the blocks that are partly visible."""
        layout = self.layout
        lists = (self.counts, self.indices, self.full_counts, self.full_indices)
        shown = visible(layout.query_pos, layout.query_code, layout.key_pos, layout.key_code, self.limits)
        return block_mask(*lists, shown, layout.query_pos.numel(), layout.key_pos.numel())


def visible(query_pos: Tensor, query_code: Tensor, key_pos: Tensor, key_code: Tensor, limits: Tensor) -> Callable:
    """FlexAttention's mask function. All numbers are in tensors: other ones do not make it compile again."""

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
    """FlexAttention's block mask from rows of `most` indices; it takes rows as long as there are blocks of keys."""
    columns = -(-k // BLOCK)
    return BlockMask.from_kv_blocks(
        *(counts[None, None], _as_wide(indices, columns), full_counts[None, None], _as_wide(full_indices, columns)),
        BLOCK_SIZE=BLOCK,
        mask_mod=mask_mod,
        seq_lengths=(q, k),
        compute_q_blocks=False,
    )


def _as_wide(indices: Tensor, columns: int) -> Tensor:
    """A view [1, 1, rows, columns] of [rows, most]. Rows overlap, but none is read beyond its count."""
    rows, most = indices.shape
    flat = F.pad(indices.flatten(), (0, max(0, columns - most)))
    return flat.as_strided((1, 1, rows, columns), (flat.numel(), flat.numel(), most, 1))


def kept_blocks(pattern: Band | Blocks, device: torch.device, *, split: bool, show_sinks: bool = True) -> Blocked:
    """`make_blocks`, from the cache."""
    name = ("blocks", split, show_sinks, pattern.sinks, pattern.local)
    return kept_for(pattern, name, device, lambda: make_blocks(pattern, device, split=split, show_sinks=show_sinks))


def make_blocks(pattern: Band | Blocks, device: torch.device, *, split: bool, show_sinks: bool = True) -> Blocked:
    """The block lists of a pattern's own part and sinks.

    Args:
        split: leave out the pairs that the local window shows; otherwise the pattern has none.
        show_sinks: False where another pass shows them.
    """
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
    slot = inverse(queries - first)
    numbers = queries.int(), query_code.int(), keys.int(), key_code.int()
    index = queries - first, keys.clamp(max=n - 1), slot
    return Layout(*index, *numbers, width, ring, low, line, front, superblock)


def _present(order: Tensor, code: Tensor, low: int, high: int) -> tuple[Tensor, Tensor]:
    """The tokens low .. high - 1 in that order, and their codes, without waiting for the device."""
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
    """Ranges of blocks (from, to) that hold all keys a block of queries may see: int64 [query blocks] each."""
    low, high = _extent(layout.query_code)
    side, size, line = layout.width - 1, layout.superblock, layout.line.contiguous()
    ahead = 0 if layout.keys is None else side  # in the order of positions, keys with larger codes are in the future
    last = -(-layout.key_pos.numel() // BLOCK)
    ranges = []
    if shown:
        ranges.append((torch.zeros_like(low), torch.full_like(low, -(-shown // BLOCK))))
    for turn in (0, -layout.ring, layout.ring) if layout.ring else (0,):
        begin = torch.searchsorted(line, (low - side + turn).to(line.dtype)) // size * size
        end = torch.searchsorted(line, (high + ahead + turn).to(line.dtype), right=True)
        begin, end = begin + layout.front, -(-end // size) * size + layout.front
        empty = end <= begin
        ranges.append((begin // BLOCK, torch.where(empty, begin // BLOCK, (-(-end // BLOCK)).clamp(max=last))))
    return ranges


def _extent(values: Tensor) -> tuple[Tensor, Tensor]:
    """The smallest and largest value of every block: int64 [blocks] each. The last block may be shorter."""
    missing = -values.numel() % BLOCK
    padded = torch.cat([values, values[-1:].expand(missing)]).view(-1, BLOCK).long()
    return padded.amin(dim=1), padded.amax(dim=1)


def _list_blocks(layout: Layout, ranges: _RANGES, local: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`Blocked`'s counts, indices, full_counts and full_indices, out of the blocks in some ranges."""
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
    # Blocks with sinks, with pairs of the local window, or at the end with empty slots, are not fully visible.
    full &= (key_pos[0][index] >= layout.sinks) & (index < last)
    if local:
        full &= query_pos[0][:, None] - key_pos[1][index] >= local
    return *compact(index, seen & ~full), *compact(index, full)


def compact(index: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Every row's wanted entries, ascending, before the others: (how many [rows], indices [rows, columns]), int32."""
    key = torch.where(wanted, index, torch.iinfo(torch.int64).max)
    return wanted.sum(dim=1).int(), index.gather(1, key.argsort(dim=1, stable=True)).int().contiguous()
