"""Plans of the `triton` kernel: a pattern as tiles of queries and sorted lists of keys, which the programs gather.

Where every token is a query, no plan waits for the device.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sa_patch.kept import kept_for
from sa_patch.patterns import Band, Blocks
from sa_patch.randomness import inverse

# What is known of a tile, in this order: see `Plan.tiles`.
FACTS = ("list", "free", "stop", "old", "width")
_UNBOUNDED = 1 << 30  # a width, where a plan whose ranks don't count is joined with one whose ranks do


@dataclass(frozen=True)
class Extras:
    """What changes a pattern's own part: sinks and a local window.

    Attributes:
        skip: keys at positions below it are left out of the own part.
        sinks: they are seen by every later query instead: a list begins with them.
        local: leave out the pairs with query - key < local.
    """

    skip: int = 0
    sinks: bool = False
    local: int = 0

    @property
    def opened(self) -> int:
        """Sinks in a list."""
        return self.skip if self.sinks else 0


@dataclass(frozen=True, eq=False)
class Plan:
    """Tiles of queries, each with a list of keys; consecutive tiles may share a list.

    Attributes:
        query_pos: int32 [tiles, rows], positions, ascending; -1 where there is no query.
        query_rank: int32 [tiles, rows].
        key_pos, key_rank: int32, one list after the other, each sorted by position and a multiple of a step long; after
            a list's last key come positions beyond all queries. Where `listed` is False, the position of each list's
            first key, sinks aside: its keys are consecutive, and positions are ranks.
        tiles: int32 [tiles, FACTS]. Where the tile's list begins, in steps; where not `listed`, its number. How many of
            its first keys no position needs to be compared for: all queries of the tile may see them. How many keys a
            query of the tile may see. Where not `listed`, how many of its first keys are too old for some query. And
            the width: a key is visible if |query_rank - key_rank| < width.
        banded: ranks count.
        opened: this many keys at the beginning of a list are sinks, visible whatever their rank.
    """

    query_pos: Tensor
    query_rank: Tensor
    key_pos: Tensor
    key_rank: Tensor
    tiles: Tensor
    banded: bool
    listed: bool
    opened: int
    local: int


def make_plan(
    pattern: Band | Blocks, rows: int, step: int, tiles_per_list: int, extras: Extras, device: torch.device
) -> Plan:
    """The own part of a pattern, selected runs aside, with its sinks.

    Args:
        rows: tokens per tile.
        step: keys per step.
        tiles_per_list: for bands in a permuted order. With more, a list is longer, but early tiles visit less of it
            (see `tiles_per_list` in tile_sizes).
    """
    if isinstance(pattern, Blocks):
        return _plan_runs(pattern, rows, step, extras, device)
    if pattern.order is None:
        return _plan_window(pattern, rows, extras, device)
    return _plan_band(pattern, pattern.order, rows, step, tiles_per_list, extras, device)


def kept_plan(
    pattern: Band | Blocks, rows: int, step: int, tiles_per_list: int, extras: Extras, device: torch.device
) -> Plan:
    """`make_plan`, from the cache."""
    name = ("plan", rows, step, tiles_per_list, extras)
    return kept_for(pattern, name, device, lambda: make_plan(pattern, rows, step, tiles_per_list, extras, device))


def join(plans: Sequence[Plan], step: int) -> Plan:
    """The tiles of several listed plans as one."""
    begin, tiles = 0, []
    for plan in plans:
        tiles.append(plan.tiles + F.pad(plan.tiles.new_tensor([begin]), (0, len(FACTS) - 1)))
        begin += plan.key_pos.numel() // step
    names, banded = ("query_pos", "query_rank", "key_pos", "key_rank"), any(plan.banded for plan in plans)
    joined = {name: torch.cat([getattr(plan, name) for plan in plans]) for name in names}
    opened, local = max(plan.opened for plan in plans), plans[0].local
    return Plan(**joined, tiles=torch.cat(tiles), banded=banded, listed=True, opened=opened, local=local)


def _facts(visible: Tensor, *columns: Tensor | int) -> Tensor:
    """Facts of the tiles: `visible` is how many keys each query may see, int64 [tiles, rows], 0 where there is none."""
    begin, *others = (torch.as_tensor(column, device=visible.device) for column in columns)
    facts = (begin, visible[:, 0], visible.amax(dim=1), *others)
    return torch.stack([fact.expand(len(visible)) for fact in facts], dim=1).int()


def listed(
    queries: Tensor,
    query_rank: Tensor,
    keys: Tensor,
    key_rank: Tensor,
    rows: int,
    step: int,
    absent: int,
    width: int,
    extras: Extras,
) -> Plan:
    """The plan of queries [lists, m * rows] and keys [lists, span]; empty slots hold `absent`, beyond all positions."""
    queries, order = queries.sort(dim=1)
    query_rank = query_rank.gather(1, order)
    opened = min(extras.opened, absent)
    if extras.skip:
        keys = keys.masked_fill(keys < extras.skip, absent)
    keys, order = keys.sort(dim=1)
    key_rank = key_rank.gather(1, order)
    if opened:
        sinks = torch.arange(opened, device=keys.device).expand(len(keys), opened)
        keys, key_rank = torch.cat([sinks, keys], dim=1), torch.cat([sinks, key_rank], dim=1)
    fill = -keys.shape[1] % step
    keys, key_rank = F.pad(keys, (0, fill), value=absent), F.pad(key_rank, (0, fill))
    real = queries < absent
    visible = torch.searchsorted(keys, queries - extras.local, right=True)
    if opened and extras.local:
        visible = visible.maximum((queries + 1).clamp(max=opened))
    visible = visible.masked_fill(~real, 0).view(-1, rows)
    steps, tiles = keys.shape[1] // step, queries.shape[1] // rows
    begin = torch.arange(len(visible), device=keys.device) // tiles * steps
    found = queries.masked_fill(~real, -1).view(-1, rows).int(), query_rank.reshape(-1, rows).int()
    facts = _facts(visible, begin, 0, width or _UNBOUNDED)
    return Plan(*found, keys.flatten().int(), key_rank.flatten().int(), facts, width > 0, True, opened, extras.local)


def _consecutive(queries: Tensor, begin: Tensor, rows: int, absent: int, width: int, extras: Extras) -> Plan:
    """The plan of queries [lists, m * rows], ascending, and lists of consecutive keys from `begin` [lists] on."""
    opened = min(extras.opened, absent)
    begin = begin.clamp(min=extras.skip)
    tiles = queries.shape[1] // rows
    real, first = queries < absent, begin.repeat_interleave(tiles, output_size=len(begin) * tiles)
    queries = queries.masked_fill(~real, -1).view(-1, rows)
    visible = (queries - extras.local + 1 - first[:, None]).clamp(min=0) + opened
    visible = visible.masked_fill(queries < 0, 0)
    old = (queries.amax(dim=1) - width + 1 - first).clamp(min=0) + opened
    number = torch.arange(len(first), device=queries.device) // tiles
    position, key_pos = queries.int(), begin.int()
    facts = _facts(visible, number, old, width)
    return Plan(position, position, key_pos, key_pos, facts, width > 0, False, opened, extras.local)


def _plan_window(band: Band, rows: int, extras: Extras, device: torch.device) -> Plan:
    lists = -(-band.query_len // rows)
    queries = band.first + torch.arange(lists * rows, device=device).view(lists, rows)
    begin = (queries[:, 0] - band.width + 1).clamp(min=0)
    return _consecutive(queries.clamp(max=band.length), begin, rows, band.length, band.width, extras)


def _plan_band(
    band: Band, order: Tensor, rows: int, step: int, tiles_per_list: int, extras: Extras, device: torch.device
) -> Plan:
    found = band_lists(band, order, rows * tiles_per_list, band.first, 0, device)
    return listed(*found, rows, step, band.length, band.width, extras)


def band_lists(
    band: Band, order: Tensor, block: int, rows_from: int, columns_from: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The tokens from `rows_from` on, sorted by rank, and for every `block` of them the tokens from `columns_from` on
    whose ranks are near.

    Returns:
        (rows [lists, block], their ranks, columns [lists, span], their ranks), int64; `length` in empty slots.
    """
    length, side, horizon = band.length, band.width - 1, order.numel()
    lists = -(-(length - rows_from) // block)
    rank, by_rank = inverse(order)[rows_from:length].sort()
    fill = lists * block - rank.numel()
    rows = F.pad(by_rank + rows_from, (0, fill), value=length).view(lists, block)
    rows_rank = torch.cat([rank, rank[-1].expand(fill)]).view(lists, block)
    token, token_rank = order, torch.arange(horizon, device=device)
    if band.circular:
        token_rank = torch.arange(-side, horizon + side, device=device)
        token = order[token_rank % horizon]
    if columns_from or length < horizon:
        present = (token >= columns_from) & (token < length)
        token, token_rank = token[present], token_rank[present]
    low = torch.searchsorted(token_rank, rows_rank[:, 0] - band.width, right=True)
    high = torch.searchsorted(token_rank, rows_rank[:, -1] + band.width)
    span = block + 2 * side if band.query_len == horizon else int((high - low).max())
    slot = low[:, None] + torch.arange(span, device=device)
    there = slot < high[:, None]
    slot = slot.clamp(max=token.numel() - 1)
    return rows, rows_rank, token[slot].masked_fill(~there, length), token_rank[slot]


def _plan_runs(blocks: Blocks, rows: int, step: int, extras: Extras, device: torch.device) -> Plan:
    n, size = blocks.length, blocks.block_size
    order = torch.arange(n, device=device) if blocks.order is None else blocks.order
    position = F.pad(order, (0, -order.numel() % size), value=n).view(-1, size)
    keys = position.clamp(max=n)
    queries = keys.masked_fill(keys < blocks.first, n)
    if blocks.order is None:
        queries = F.pad(queries.sort(dim=1).values if blocks.first else queries, (0, -size % rows), value=n)
        return _consecutive(queries, position[:, 0], rows, n, 0, extras)
    queries = F.pad(queries, (0, -size % rows), value=n)
    return listed(queries, queries, keys, keys, rows, step, n, 0, extras)
