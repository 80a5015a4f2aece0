"""Selected runs of keys by Triton programs, without waiting for the device. Belongs to the `triton` kernel."""

import torch
from torch import Tensor

from sa_patch.kernels.triton.launch import LOG2_E, dim_for, launch
from sa_patch.kernels.triton.request_programs import requests_program, table_program, wanted_program
from sa_patch.kernels.triton.tile_sizes import Tile
from sa_patch.patterns import Blocks

_PAIRS, _RUNS = 1024, 1024  # pairs and runs that are looked at together
_SMALL = Tile(0, 0, 4, 1)


def requests_part(
    query: Tensor, key: Tensor, value: Tensor, blocks: Blocks, tile: Tile, scaling: float
) -> tuple[Tensor, Tensor]:
    """A part for each of the k selected runs per query, without the keys that sinks and local window show.

    Args:
        query: [batch, heads, q, head_dim]; key, value: [batch, kv_heads, n, head_dim]; head_dim contiguous.
        scaling: above 0.

    Returns:
        (output [batch, heads, q, k, head_dim], float32 log-sum-exp [batch, heads, q, k]); where a query has no run, the
        latter is -inf and the output undefined.
    """
    selected = blocks.selected
    assert selected is not None
    batch, heads, num_queries, head_dim = query.shape
    kv_heads, device = key.shape[1], query.device
    num_chosen, num_runs = selected.shape[-1], blocks.length // blocks.block_size
    pairs, total = selected.numel(), batch * kv_heads * num_runs
    lse = torch.empty(selected.shape, dtype=torch.float32, device=device)
    output = torch.empty(*selected.shape, head_dim, dtype=query.dtype, device=device)
    # Sorting takes time by the byte.
    wanted = torch.empty(pairs, dtype=torch.int16 if total < 1 << 15 else torch.int32, device=device)
    numbers = (pairs, num_queries * num_chosen, heads, kv_heads, num_runs, total)
    tensors = (selected.contiguous(), wanted, lse)
    launch(wanted_program, (-(-pairs // _PAIRS), 1, 1), (), tensors, numbers, (), (_PAIRS,), _SMALL)
    wanted, order = wanted.sort(stable=True)
    begin, end = (torch.empty(total + 1, dtype=torch.int32, device=device) for _ in range(2))
    numbers = (pairs, total, pairs.bit_length() + 1)
    launch(table_program, (1, 1, 1), (), (wanted, begin, end), numbers, (), (tile.rows, _RUNS), _SMALL)
    # As many tiles as could be needed: waiting for the device to tell how many are would take longer.
    launch(
        requests_program,
        (pairs // tile.rows + min(total, pairs), 1, 1),
        (query, key, value),
        (output, lse, order, begin, end),
        (
            *(num_queries, blocks.first, num_chosen, num_runs, total, blocks.block_size, blocks.sinks, blocks.local),
            *(scaling * LOG2_E, kv_heads),
        ),
        (head_dim, heads // kv_heads),
        (
            *(tile.rows, tile.keys, dim_for(head_dim), _RUNS, blocks.local > 0, dim_for(head_dim) != head_dim),
            query.dtype == torch.float32,
        ),
        tile,
    )
    return output, lse
