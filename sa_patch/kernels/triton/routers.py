"""Routers as Triton programs, for `sa_patch.router` and moba's: on a GPU, few launches and no scores in memory."""

import torch
from torch import Tensor

from sa_patch.kernels.triton.launch import LOG2_E, dim_for, launch, next_power_of_2
from sa_patch.kernels.triton.router_programs import nearest_program, statistics_program, votes_program
from sa_patch.kernels.triton.tile_sizes import LARGEST_HEAD, Tile

_ROWS, _BLOCKS = 128, 64  # queries x heads, and blocks, that are scored together


def takes(query: Tensor, key: Tensor) -> bool:
    """Whether these programs can compute with such tensors."""
    known = query.dtype in (torch.float32, torch.float16, torch.bfloat16) and query.shape[-1] <= LARGEST_HEAD
    return known and query.stride(-1) == key.stride(-1) == 1


def _statistics(
    key: Tensor, begin: int, size: int, count: int, parts: int, *, spread: bool, dtype: torch.dtype
) -> Tensor:
    """[parts + spread, batch * kv_heads, count, padded head_dim]: the mean in parts, and the variance."""
    batch, kv_heads, _, head_dim = key.shape
    dim, kinds = dim_for(head_dim), parts + spread
    found = torch.empty(kinds, batch * kv_heads, count, dim, dtype=dtype, device=key.device)
    numbers = (begin, count, kv_heads, size, batch * kv_heads * count)
    constants = (min(64, next_power_of_2(size)), dim, parts, spread)
    grid, tile = (count, batch * kv_heads, 1), Tile(0, 0, 4, 1)
    launch(statistics_program, grid, (key,), (found,), numbers, (head_dim,), constants, tile)
    return found


def nearest(query: Tensor, key: Tensor, size: int) -> Tensor:
    """The earlier block of `size` keys whose mean has the largest product with the query; -1 where none is earlier.

    Args:
        query: [batch, heads, query_len, head_dim], the last positions; key: [batch, kv_heads, length, head_dim].

    Returns:
        int64 [batch, heads, query_len, 1]
    """
    batch, heads, num_queries, head_dim = query.shape
    kv_heads, length = key.shape[1:3]
    count, half = (length - 1) // size, query.dtype == torch.bfloat16
    parts, dtype = (3, torch.bfloat16) if half else (1, torch.float32)
    statistics = _statistics(key, 0, size, count, parts, spread=False, dtype=dtype)
    best = torch.empty(batch, heads, num_queries, 1, dtype=torch.int64, device=query.device)
    group = heads // kv_heads
    together = next_power_of_2(group)
    rows = max(1, (_ROWS if half else 32) // together)
    numbers = (num_queries, length - num_queries, size, count, batch * kv_heads, kv_heads)
    blocks = (_BLOCKS if head_dim <= 128 else _BLOCKS // 2) if half else 16
    constants = (rows, together, blocks, dim_for(head_dim), parts, not half)
    grid, tile = (-(-num_queries // rows), batch * kv_heads, 1), Tile(0, 0, 8, 2)
    launch(nearest_program, grid, (query,), (statistics, best), numbers, (head_dim, group), constants, tile)
    return best


class Votes:
    """What tiles of queries think of the blocks of keys that they may choose.

    In half precision, factors are rounded as queries and keys are; products and sums are float32.
    """

    @staticmethod
    def fit(query_block: int, group: int) -> bool:
        """Whether so many queries, of so many heads, may choose together."""
        return 1 < next_power_of_2(query_block) * next_power_of_2(group) <= _ROWS

    def __init__(
        self,
        query: Tensor,
        key: Tensor,
        *,
        start: int,
        block_size: int,
        query_block: int,
        local: int,
        choosers: int,
        spread: float,
        scaling: float,
    ):
        self.query, self.choosers, self.scaling, self.spread = query, choosers, scaling, spread
        self.start, self.block_size, self.query_block, self.local = start, block_size, query_block, local
        self.first, self.kv_heads = key.shape[2] - query.shape[2], key.shape[1]
        self.count = max(0, key.shape[2] - start) // block_size
        self.half = query.dtype != torch.float32
        dtype = query.dtype if self.half else torch.float32
        self.statistics = _statistics(key, start, block_size, self.count, 1, spread=spread > 0, dtype=dtype)

    def of(self, tile: int, tiles: int, most: int) -> Tensor:
        """Votes of `tiles` tiles from number `tile` on for the first `most` blocks; -inf where one may not be chosen.

        Returns:
            float32 [rows, choosers, tiles, most]
        """
        batch, heads, num_queries, head_dim = self.query.shape
        group = heads // self.choosers
        together = next_power_of_2(group)
        rows = max(next_power_of_2(self.query_block), -(-16 // together))
        found = torch.empty(batch, self.choosers, tiles, most, dtype=torch.float32, device=self.query.device)
        numbers = (
            *(num_queries, self.first, self.start, self.local, self.query_block, self.choosers, tile, tiles, most),
            *(self.count, self.statistics.shape[1] * self.count, self.scaling * LOG2_E),
            *(self.scaling * self.spread / 2, self.kv_heads),
        )
        blocks, dim = _BLOCKS if self.half else 16, dim_for(head_dim)
        constants = (rows, together, blocks, dim, self.block_size, self.spread > 0, not self.half)
        heads_of, grid = (self.query,), (tiles, batch * self.choosers, 1)
        used = Tile(0, 0, 4 if rows * together <= 64 else 8, 2 if self.spread else 3)
        launch(votes_program, grid, heads_of, (self.statistics, found), numbers, (head_dim, group), constants, used)
        return found
