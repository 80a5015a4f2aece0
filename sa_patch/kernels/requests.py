"""Selected runs of keys: (query, run) pairs sorted by the run they want, so that its queries are computed together."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sa_patch.patterns import Blocks


@dataclass(frozen=True, eq=False)
class Requests:
    """(query, run) pairs in tiles that want the same run.

    Attributes:
        order: int64 [pairs], pairs (index into batch x heads x queries x chosen) sorted by the run they want.
        tile_run: int64 [tiles], (batch, kv head, run) as one number; beyond the last one for tiles without work.
        tile_start, tile_count: int64 [tiles], a tile's stretch of `order`.
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
    """The selected runs of a pattern. The number of tiles is an upper bound: the real one is never looked at."""
    selected, size = blocks.selected, blocks.block_size
    assert selected is not None
    batch, heads, _, num_chosen = selected.shape
    num_runs, device = blocks.length // size, selected.device
    total = batch * kv_heads * num_runs
    row, head = torch.arange(batch, device=device), torch.arange(heads, device=device)
    owner = (row[:, None] * kv_heads + head // (heads // kv_heads)) * num_runs
    wanted = torch.where(selected < 0, total, selected + owner[..., None, None]).flatten()
    wanted, order = wanted.sort(stable=True)
    begin = torch.searchsorted(wanted, torch.arange(total + 1, device=device))
    count = begin.diff()
    tiles = -(-count // rows)
    end = tiles.cumsum(0)
    tile = torch.arange(wanted.numel() // rows + min(total, wanted.numel()), device=device)
    run = torch.searchsorted(end, tile, right=True)
    known = run.clamp(max=total - 1)
    within = (tile - (end - tiles)[known]) * rows
    left = (count[known] - within).clamp(min=0, max=rows)
    return Requests(order, run, begin[known] + within, left, rows, size, num_runs, num_chosen)
