"""Selected runs of keys: (query, run) pairs sorted by the run they want, so that its queries are computed together.

As mixture-of-experts models collect the tokens of an expert.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sa_patch.patterns import Blocks


def sort_by_run(blocks: Blocks, kv_heads: int, per_head: int, offset: int = 0) -> tuple[Tensor, Tensor]:
    """All (query, run) pairs, sorted by the run they want.

    Args:
        per_head: how far the numbers of a kv head's runs are from those of the next one.
        offset: the number of the first kv head's first run.

    Returns:
        (wanted, pair), int64 [pairs] each: the number of the wanted run, ascending, and an index into batch x heads x
        queries x chosen. Pairs that want no run come last, with the number batch * kv_heads * per_head.
    """
    selected = blocks.selected
    assert selected is not None
    batch, heads = selected.shape[:2]
    row, head = torch.arange(batch, device=selected.device), torch.arange(heads, device=selected.device)
    begin = (row[:, None] * kv_heads + head // (heads // kv_heads)) * per_head + offset
    none = batch * kv_heads * per_head
    return torch.where(selected < 0, none, selected + begin[..., None, None]).flatten().sort(stable=True)


@dataclass(frozen=True, eq=False)
class Requests:
    """(query, run) pairs in tiles of `rows` that want the same run.

    Attributes:
        order: int64 [pairs], pairs (index into batch x heads x queries x chosen) sorted by the run they want.
        tile_run: int64 [tiles], the (batch, kv head, run) of a tile as one number; batch * kv_heads * num_runs for
            tiles without pairs.
        tile_start, tile_count: int64 [tiles], a tile has the pairs order[start : start + count].
        run_size: tokens per run; num_runs: whole runs of a sequence; num_chosen: runs per query.
    """

    order: Tensor
    tile_run: Tensor
    tile_start: Tensor
    tile_count: Tensor
    rows: int
    run_size: int
    num_runs: int
    num_chosen: int


def make_requests(blocks: Blocks, kv_heads: int, rows: int) -> Requests:
    """The selected runs of a pattern.

    There are as many tiles as could be needed: waiting for the device to tell how many are would take longer.
    """
    assert blocks.selected is not None
    batch, num_chosen, device = blocks.selected.shape[0], blocks.selected.shape[-1], blocks.selected.device
    num_runs = blocks.length // blocks.block_size
    total = batch * kv_heads * num_runs
    wanted, order = sort_by_run(blocks, kv_heads, num_runs)
    begin = torch.searchsorted(wanted, torch.arange(total + 1, device=device))
    count = begin.diff()
    tiles = -(-count // rows)
    end = tiles.cumsum(0)
    tile = torch.arange(wanted.numel() // rows + min(total, wanted.numel()), device=device)
    run = torch.searchsorted(end, tile, right=True)
    known = run.clamp(max=total - 1)
    within = (tile - (end - tiles)[known]) * rows
    left = (count[known] - within).clamp(min=0, max=rows)
    return Requests(order, run, begin[known] + within, left, rows, blocks.block_size, num_runs, num_chosen)
