"""Launching the programs of the `triton` kernel."""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from sa_patch.kernels.merging import Part
from sa_patch.kernels.requests import Requests
from sa_patch.kernels.triton.plans import Plan
from sa_patch.kernels.triton.programs import plan_program, requests_program
from sa_patch.kernels.triton.tile_sizes import Tile

LOG2_E = 1.4426950408889634


def plan_part(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: Plan,
    tile: Tile,
    scaling: float,
    *,
    first: int,
    skip: int = 0,
    sinks: bool = False,
    local: int = 0,
    prior: tuple[Tensor, Tensor] | None = None,
    part: bool = False,
) -> Part:
    """The pairs of a plan.

    Args:
        query: [batch, heads, q, head_dim]; key, value: [batch, kv_heads, n, head_dim]; head_dim contiguous.
        scaling: above 0.
        first: position of the first query.
        skip: keys at positions below it are no part of the plan's lists.
        sinks: they are visible to every later query instead; otherwise to none.
        local: leave out keys whose distance is below it.
        prior: results over other keys to merge: output [batch, heads, q, k, head_dim], log-sum-exp without head_dim.
        part: return what `merge` needs.

    Returns:
        (output [batch, heads, q, head_dim], float32 for a part; float32 log-sum-exp [batch, heads, q] or None)
    """
    batch, heads, num_queries, head_dim = query.shape
    kv_heads = key.shape[1]
    output = torch.empty(query.shape, dtype=torch.float32 if part else query.dtype, device=query.device)
    lse = torch.empty((batch, heads, num_queries), dtype=torch.float32, device=query.device) if part else None
    tiles, rows = plan.query_pos.shape
    group, dim = heads // kv_heads, dim_for(head_dim)
    prior_output, prior_lse = (output, output) if prior is None else prior
    launch(
        plan_program,
        (tiles, batch * kv_heads, 1),
        (query, key, value),
        (
            *(output, output if lse is None else lse, prior_output, prior_lse),
            *(plan.query_pos, plan.query_rank, plan.key_pos, plan.key_rank, plan.past, plan.stop),
        ),
        (num_queries, first, plan.key_pos.shape[1], plan.width, skip, local, scaling * LOG2_E, kv_heads),
        (head_dim, group),
        (
            *(rows, next_power_of_2(group), tile.keys, dim, plan.tiles_per_list, plan.width > 0, skip > 0, sinks),
            *(local > 0, 0 if prior is None else prior_lse.shape[3], dim != head_dim, query.dtype == torch.float32),
            part,
        ),
        tile,
    )
    return output, lse


def requests_part(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    requests: Requests,
    tile: Tile,
    scaling: float,
    *,
    first: int,
    skip: int,
    local: int,
) -> tuple[Tensor, Tensor]:
    """Every query to the whole runs it asked for, each by itself.

    Returns:
        (output [batch, heads, q, k, head_dim], float32 log-sum-exp [batch, heads, q, k]); anything and -inf for no run.
    """
    batch, heads, num_queries, head_dim = query.shape
    kv_heads = key.shape[1]
    shape, dim = (batch, heads, num_queries, requests.num_chosen), dim_for(head_dim)
    output = torch.empty(*shape, head_dim, dtype=query.dtype, device=query.device)
    lse = torch.full(shape, -torch.inf, dtype=torch.float32, device=query.device)
    launch(
        requests_program,
        (requests.tile_run.numel(), 1, 1),
        (query, key, value),
        (output, lse, requests.order, requests.tile_run, requests.tile_start, requests.tile_count),
        (
            *(num_queries, first, requests.num_chosen, requests.num_runs, batch * kv_heads * requests.num_runs),
            *(requests.run_size, skip, local, scaling * LOG2_E, kv_heads),
        ),
        (head_dim, heads // kv_heads),
        (requests.rows, tile.keys, dim, skip > 0, local > 0, dim != head_dim, query.dtype == torch.float32),
        tile,
    )
    return output, lse


# Programs that Triton has compiled, by everything it compiles them for: looking that up costs it more than launching.
_COMPILED: dict[tuple, Any] = {}


def launch(
    program: Any,
    grid: tuple[int, int, int],
    heads: tuple[Tensor, Tensor, Tensor],
    tensors: tuple[Tensor, ...],
    numbers: tuple[int | float, ...],
    sizes: tuple[int, int],
    constants: tuple[int, ...],
    tile: Tile,
) -> None:
    """Launch a program with arguments in its own order, on the tensors' device.

    Args:
        heads: query, key, value; their strides come after `tensors`.
        numbers: what no program is compiled anew for.
        sizes: head_dim, and query heads per kv head.
    """
    query, key, value = heads
    strides = (*query.stride()[:3], *key.stride()[:3], *value.stride()[:3])
    arguments = (*heads, *tensors, *strides, *numbers, *sizes, *constants)
    device = query.device
    if device.type == "cuda" and device.index != torch.cuda.current_device():  # Triton launches where the thread is
        with torch.cuda.device(device):
            return launch(program, grid, heads, tensors, numbers, sizes, constants, tile)
    regular = _is_regular(strides) and not (query.data_ptr() | key.data_ptr() | value.data_ptr()) % 16
    known = (program, device.index, query.dtype, tensors[0].dtype, sizes[0], constants, tile)
    compiled = _COMPILED.get(known) if regular else None
    if compiled is not None:
        compiled[grid](*arguments)
        return None
    compiled = program[grid](*arguments, num_warps=tile.warps, num_stages=tile.stages)
    if regular and compiled is not None:
        _COMPILED[known] = compiled
    return None


@lru_cache(maxsize=1024)
def _is_regular(strides: tuple[int, ...]) -> bool:
    """True where Triton takes all strides for 32-bit multiples of 16."""
    return all(stride % 16 == 0 and stride < 1 << 31 for stride in strides)


def next_power_of_2(number: int) -> int:
    """The smallest one that is not below it."""
    return 1 << (number - 1).bit_length()


def dim_for(head_dim: int) -> int:
    """The power of two that heads are padded to: products need 16 at least."""
    return max(16, next_power_of_2(head_dim))
