"""Plans of the `triton` kernel: a pattern as tiles of queries and sorted lists of keys, which the programs gather.

Where every token is a query, no plan waits for the device.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sa_patch.kept import kept_for
from sa_patch.patterns import Band, Blocks
from sa_patch.randomness import inverse


@dataclass(frozen=True, eq=False)
class Plan:
    """Tiles of queries and lists of keys; `tiles_per_list` consecutive tiles share a list.

    Attributes:
        query_pos: int32 [tiles, rows], positions, ascending over the tiles of a list; -1 where there is no query.
        query_rank: int32 [tiles, rows].
        key_pos, key_rank: int32 [lists, span], sorted by position; beyond a list's end undefined.
        past: int32 [tiles]. The first `past` keys of a tile's list have key_pos <= query_pos for all queries of the
            tile: positions need not be compared there.
        stop: int32 [tiles]. The keys from number `stop` on have key_pos > query_pos for all queries of the tile: it
            never visits them.
        width: a key is visible if |query_rank - key_rank| < width; 0: whatever the ranks.
    """

    query_pos: Tensor
    query_rank: Tensor
    key_pos: Tensor
    key_rank: Tensor
    past: Tensor
    stop: Tensor
    tiles_per_list: int
    width: int


def make_plan(pattern: Band | Blocks, rows: int, tiles_per_list: int, device: torch.device) -> Plan:
    """The own part of a pattern, selected runs aside.

    Args:
        rows: tokens per tile.
        tiles_per_list: for bands. With more, a list is longer, but early tiles visit less of it (see `tiles_per_list`
            in tile_sizes).
    """
    if isinstance(pattern, Blocks):
        return _plan_runs(pattern, rows, device)
    if pattern.order is None:
        return _plan_window(pattern, rows, tiles_per_list, device)
    return _plan_band(pattern, pattern.order, rows, tiles_per_list, device)


def kept_plan(pattern: Band | Blocks, rows: int, tiles_per_list: int, device: torch.device) -> Plan:
    """`make_plan`, from the cache."""
    name = ("plan", rows, tiles_per_list)
    return kept_for(pattern, name, device, lambda: make_plan(pattern, rows, tiles_per_list, device))


def _finish(
    queries: Tensor, query_rank: Tensor, keys: Tensor, key_rank: Tensor, rows: int, absent: int, width: int
) -> Plan:
    """The plan of queries [lists, m * rows] and keys [lists, span]; empty slots hold `absent`, beyond all positions."""
    queries, order = queries.sort(dim=1)
    query_rank = query_rank.gather(1, order)
    keys, order = keys.sort(dim=1)
    key_rank = key_rank.gather(1, order)
    real = queries < absent
    # The keys a query may see are those up to its own position.
    reach = torch.searchsorted(keys, queries, right=True).masked_fill(~real, 0).unflatten(1, (-1, rows))
    past, stop = reach[..., 0].flatten(), reach.amax(dim=2).flatten()
    queries = queries.masked_fill(~real, -1)
    tiles = queries.view(-1, rows).int(), query_rank.reshape(-1, rows).int()
    return Plan(*tiles, keys.int(), key_rank.int(), past.int(), stop.int(), queries.shape[1] // rows, width)


def _plan_window(band: Band, rows: int, tiles_per_list: int, device: torch.device) -> Plan:
    length, side, block = band.length, band.width - 1, rows * tiles_per_list
    lists = -(-band.query_len // block)
    queries = band.first + torch.arange(lists * block, device=device).view(lists, block)
    keys = queries[:, :1] - side + torch.arange(block + side, device=device)
    keys = keys.masked_fill((keys < 0) | (keys >= length), length)
    queries = queries.clamp(max=length)
    return _finish(queries, queries, keys, keys, rows, length, band.width)


def _plan_band(band: Band, order: Tensor, rows: int, tiles_per_list: int, device: torch.device) -> Plan:
    length, side, block = band.length, band.width - 1, rows * tiles_per_list
    horizon, lists = order.numel(), -(-band.query_len // block)
    rank, by_rank = inverse(order)[band.first : length].sort()
    fill = lists * block - band.query_len
    queries = F.pad(by_rank + band.first, (0, fill), value=length).view(lists, block)
    final = rank[-1]
    query_rank = torch.cat([rank, final.expand(fill)]).view(lists, block)
    token, token_rank = order, torch.arange(horizon, device=device)
    if band.circular:
        token_rank = torch.arange(-side, horizon + side, device=device)
        token = order[token_rank % horizon]
    elif length < horizon:
        present = order < length
        token, token_rank = order[present], token_rank[present]
    low = torch.searchsorted(token_rank, query_rank[:, 0] - band.width, right=True)
    high = torch.searchsorted(token_rank, query_rank[:, -1] + band.width)
    span = block + 2 * side if band.query_len == horizon else int((high - low).max())
    slot = low[:, None] + torch.arange(span, device=device)
    there = slot < high[:, None]
    slot = slot.clamp(max=token.numel() - 1)
    keys = token[slot].masked_fill(~there, length)
    return _finish(queries, query_rank, keys, token_rank[slot], rows, length, band.width)


def _plan_runs(blocks: Blocks, rows: int, device: torch.device) -> Plan:
    n, size = blocks.length, blocks.block_size
    order = torch.arange(n, device=device) if blocks.order is None else blocks.order
    position = F.pad(order, (0, -order.numel() % size), value=n).view(-1, size)
    keys = position.masked_fill(position >= n, n)
    queries = keys.masked_fill(keys < blocks.first, n)
    queries = F.pad(queries, (0, -size % rows), value=n)
    return _finish(queries, queries, keys, keys, rows, n, 0)
