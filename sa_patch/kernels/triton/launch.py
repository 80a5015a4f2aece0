"""Launching the programs of the `triton` kernel."""

from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from sa_patch.kernels.merging import Part
from sa_patch.kernels.triton.plans import FACTS, Plan
from sa_patch.kernels.triton.programs import plan_program, routed_program
from sa_patch.kernels.triton.tile_sizes import Tile
from sa_patch.patterns import Selected

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
    prior: tuple[Tensor, Tensor] | None = None,
    with_lse: bool = False,
) -> Part:
    """Attention over the pairs of a plan.

    Args:
        query: [batch, heads, q, head_dim]; key, value: [batch, kv_heads, n, head_dim]; head_dim contiguous.
        scaling: above 0.
        first: position of the first query.
        prior: k parts over other keys, to be merged: output [batch, heads, q, k, head_dim], log-sum-exp [batch, heads,
            q, k].
        with_lse: return the log-sum-exp, because the part is merged with others.

    Returns:
        (output [batch, heads, q, head_dim]; float32 log-sum-exp [batch, heads, q] or None)
    """
    batch, heads, num_queries, head_dim = query.shape
    kv_heads = key.shape[1]
    output = torch.empty_like(query, memory_format=torch.contiguous_format)
    lse = torch.empty((batch, heads, num_queries), dtype=torch.float32, device=query.device) if with_lse else None
    tiles, rows = plan.query_pos.shape
    group, dim = heads // kv_heads, dim_for(head_dim)
    prior_output, prior_lse = (output, output) if prior is None else prior
    launch(
        plan_program,
        (tiles, batch * kv_heads, 1),
        (query, key, value),
        (
            *(output, output if lse is None else lse, prior_output, prior_lse),
            *(plan.query_pos, plan.query_rank, plan.key_pos, plan.key_rank, plan.tiles),
        ),
        (num_queries, first, key.shape[2], plan.opened, plan.local, scaling * LOG2_E, kv_heads),
        (head_dim, group),
        (
            *(rows, next_power_of_2(group), tile.keys, dim, len(FACTS), plan.banded, plan.listed, plan.opened > 0),
            *(0 if prior is None else prior_lse.shape[3], dim != head_dim, query.dtype == torch.float32, with_lse),
        ),
        tile,
    )
    return output, lse


def routed(
    query: Tensor, key: Tensor, value: Tensor, pattern: Selected, tile: Tile, scaling: float, output: Tensor
) -> None:
    """Attention of the queries from `pattern.whole` on, into `output` [batch, heads, q, head_dim], contiguous."""
    selected = pattern.selected
    assert selected is not None
    batch, heads, num_queries, head_dim = query.shape
    choosers, tiles, count = selected.shape[1:]
    group, dim = heads // choosers, dim_for(head_dim)
    together = next_power_of_2(group)
    rows = max(16 // together, min(next_power_of_2(pattern.query_block), tile.rows // together), 1)
    parts = -(-pattern.query_block // rows)
    launch(
        routed_program,
        (tiles * parts, batch * choosers, 1),
        (query, key, value),
        (output, selected.contiguous()),
        (
            *(num_queries, pattern.first, pattern.length, pattern.whole, pattern.query_block, count, choosers, tiles),
            *(parts, pattern.sinks, max(pattern.local, 1), scaling * LOG2_E, key.shape[1]),
        ),
        (head_dim, group),
        (rows, together, tile.keys, dim, pattern.block_size, dim != head_dim, query.dtype == torch.float32),
        tile if rows * together > 64 else replace(tile, warps=min(tile.warps, 4)),
    )


# Compiled programs by everything that Triton compiles them for: its own look-up takes longer than the launch.
_COMPILED: dict[tuple, Any] = {}


def launch(
    program: Any,
    grid: tuple[int, int, int],
    heads: tuple[Tensor, ...],
    tensors: tuple[Tensor, ...],
    numbers: tuple[int | float, ...],
    sizes: tuple[int, ...],
    constants: tuple[int, ...],
    tile: Tile,
) -> None:
    """Launch a program with arguments in its own order, on the tensors' device.

    Args:
        heads: query, key, value, as far as they are needed, [batch, heads, n, head_dim]; their strides come after
            `tensors`.
        numbers: arguments whose values Triton does not specialize the program for.
        sizes: head_dim, and query heads per kv head or chooser.
    """
    device, pointers = tensors[0].device, (*heads, *tensors)
    if device.type == "cuda" and device.index != torch.cuda.current_device():  # Triton launches on the current device
        with torch.cuda.device(device):
            return launch(program, grid, heads, tensors, numbers, sizes, constants, tile)
    strides = tuple(stride for tensor in heads for stride in tensor.stride()[:3])
    addresses = [tensor.data_ptr() for tensor in pointers]
    regular = _is_regular(strides) and not any(address % 16 for address in addresses)
    dtypes = *(tensor.dtype for tensor in heads[:1]), *(tensor.dtype for tensor in tensors[:2])
    known = (program, device.index, dtypes, sizes[:1], constants, tile)
    compiled = _COMPILED.get(known) if regular else None
    if compiled is not None:
        compiled[grid](*addresses, *strides, *numbers, *sizes, *constants)  # of a tensor, Triton would ask the driver
        return None
    options = {"num_warps": tile.warps, "num_stages": tile.stages}
    if tile.registers:
        options["maxnreg"] = tile.registers
    compiled = program[grid](*pointers, *strides, *numbers, *sizes, *constants, **options)
    if regular and compiled is not None:
        _COMPILED[known] = compiled
    return None


@lru_cache(maxsize=1024)
def _is_regular(strides: tuple[int, ...]) -> bool:
    """True where Triton takes all strides for 32-bit multiples of 16."""
    return all(stride % 16 == 0 and stride < 1 << 31 for stride in strides)


def next_power_of_2(number: int) -> int:
    """The smallest power of two >= number."""
    return 1 << (number - 1).bit_length()


def dim_for(head_dim: int) -> int:
    """The power of two that head_dim is padded to; `tl.dot` needs at least 16."""
    return max(16, next_power_of_2(head_dim))
