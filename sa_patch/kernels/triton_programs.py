"""The Triton programs of the `triton` kernel, and how they are launched. Forward only.

`attend_plan`: planned tiles of queries against sorted lists of keys, gathered, in one pass. A tile holds some tokens of
all heads that share a kv head, so that keys are loaded once for the group. Keys in a tile's future are never visited;
what is near by rank is masked inside, what is past for the whole tile is not compared with positions.
`attend_requests`: queries collected by the run of keys they asked for. Imports torch and triton only.
"""

from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sa_patch.kernels.partial import Part
from sa_patch.kernels.plan import Plan, Requests
from sa_patch.kernels.tile_sizes import Tile

LOG2_E = 1.4426950408889634
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _dot(a, b, EXACT: tl.constexpr):
    return tl.dot(a, b, input_precision="ieee") if EXACT else tl.dot(a, b)


@triton.jit
def _step(q, k, v, seen, top, total, acc, scale_log2, MASKED: tl.constexpr, EXACT: tl.constexpr):
    """Online softmax over one more tile of keys; rows that see nothing so far stay at zero.

    `top` is in units of the bare products, so that scaling and subtracting it is one fused multiply-add per score.
    """
    scores = _dot(q, k, EXACT)
    if MASKED:
        scores = tl.where(seen, scores, -float("inf"))
    new = tl.maximum(top, tl.max(scores, 1))
    weights = tl.exp2(scores * scale_log2 - (new * scale_log2)[:, None])
    shrink = tl.exp2((top - new) * scale_log2)
    total = total * shrink + tl.sum(weights, 1)
    acc = acc * shrink[:, None] + _dot(weights.to(v.dtype), v, EXACT)
    return new, total, acc


@triton.jit
def _columns(base, pos, there, stride, d, head_dim, MASKED: tl.constexpr, PADDED: tl.constexpr):
    """Keys at some positions, transposed: [d, keys]."""
    place = base + (pos.to(tl.int64) * stride)[None, :] + d[:, None]
    if MASKED:
        tile = tl.load(place, mask=there[None, :] & (d < head_dim)[:, None], other=0.0)
    elif PADDED:
        tile = tl.load(place, mask=(d < head_dim)[:, None], other=0.0)
    else:
        tile = tl.load(place)
    return tile


@triton.jit
def _rows(base, pos, there, stride, d, head_dim, MASKED: tl.constexpr, PADDED: tl.constexpr):
    """Values at some positions: [keys, d]."""
    place = base + (pos.to(tl.int64) * stride)[:, None] + d[None, :]
    if MASKED:
        tile = tl.load(place, mask=there[:, None] & (d < head_dim)[None, :], other=0.0)
    elif PADDED:
        tile = tl.load(place, mask=(d < head_dim)[None, :], other=0.0)
    else:
        tile = tl.load(place)
    return tile


# Numbers that change from call to call and on whose divisibility nothing depends: without this every 1 and every
# multiple of 16 among them would be compiled anew.
_PLAIN = ["num_queries", "first", "skip", "local", "kv_heads", "group"]


# fmt: off
@triton.jit(do_not_specialize=[*_PLAIN, "span", "width"])
def _attend_plan(
    query, key, value, output, lse, prior_output, prior_lse,
    query_pos, query_rank, key_pos, key_rank, past, stop,
    stride_qb, stride_qh, stride_qn, stride_kb, stride_kh, stride_kn, stride_vb, stride_vh, stride_vn,
    num_queries, first, span, width, skip, local, scale_log2, kv_heads, head_dim, group,
    ROWS: tl.constexpr, GROUP: tl.constexpr, KEYS: tl.constexpr, DIM: tl.constexpr, TILES: tl.constexpr,
    BANDED: tl.constexpr, SKIP: tl.constexpr, SINKS: tl.constexpr, LOCAL: tl.constexpr, PRIORS: tl.constexpr,
    PADDED: tl.constexpr, EXACT: tl.constexpr, PART: tl.constexpr,
):
    # fmt: on
    tile = tl.program_id(0)
    batch, head = tl.program_id(1) // kv_heads, tl.program_id(1) % kv_heads
    sorted_list = (tile // TILES).to(tl.int64) * span
    m, d, s = tl.arange(0, ROWS * GROUP), tl.arange(0, DIM), tl.arange(0, KEYS)
    qpos = tl.load(query_pos + tile * ROWS + m % ROWS)
    # Ranks differ by less than width where this minus the key's rank, as an unsigned number, is below 2 width - 1.
    qreach = tl.load(query_rank + tile * ROWS + m % ROWS) + width - 1
    member = m // ROWS
    real = (qpos >= 0) & (member < group)
    at = tl.where(real, qpos - first, 0).to(tl.int64)
    qhead = (head * group + member).to(tl.int64)
    inside = real[:, None] & (d < head_dim)[None, :]
    place = query + batch.to(tl.int64) * stride_qb + (qhead * stride_qh + at * stride_qn)[:, None] + d[None, :]
    q = tl.load(place, mask=inside, other=0.0)
    kbase = key + batch.to(tl.int64) * stride_kb + head.to(tl.int64) * stride_kh
    vbase = value + batch.to(tl.int64) * stride_vb + head.to(tl.int64) * stride_vh
    # Large and finite: with -inf, a row without keys would subtract infinities.
    top = tl.full([ROWS * GROUP], -1.0e30, tl.float32)
    total = tl.zeros([ROWS * GROUP], tl.float32)
    acc = tl.zeros([ROWS * GROUP, DIM], tl.float32)
    row = (batch.to(tl.int64) * kv_heads * group + qhead) * num_queries + at
    for prior in tl.static_range(PRIORS):
        weight = tl.load(prior_lse + row * PRIORS + prior, mask=real, other=-float("inf")) / (scale_log2 * LN_2)
        place = prior_output + ((row * PRIORS + prior) * head_dim)[:, None] + d[None, :]
        part = tl.load(place, mask=inside & (weight > -float("inf"))[:, None], other=0.0)
        new = tl.maximum(top, weight)
        share, shrink = tl.exp2((weight - new) * scale_log2), tl.exp2((top - new) * scale_log2)
        total = total * shrink + share
        acc = acc * shrink[:, None] + part.to(tl.float32) * share[:, None]
        top = new
    if SINKS:
        for start in range(0, skip, KEYS):
            pos = start + s
            seen = (pos < skip)[None, :] & (pos[None, :] <= qpos[:, None])
            k = _columns(kbase, pos, pos < skip, stride_kn, d, head_dim, True, PADDED)
            v = _rows(vbase, pos, pos < skip, stride_vn, d, head_dim, True, PADDED)
            top, total, acc = _step(q, k, v, seen, top, total, acc, scale_log2, True, EXACT)
    last = tl.load(stop + tile)
    free = tl.load(past + tile) // KEYS * KEYS
    for start in range(0, free, KEYS):  # keys that are past, and there, for every query of the tile
        pos = tl.load(key_pos + sorted_list + start + s)
        there = pos >= skip
        seen = there[None, :] & (m >= 0)[:, None]
        if BANDED:
            rank = tl.load(key_rank + sorted_list + start + s)
            seen = seen & ((qreach[:, None] - rank[None, :]).to(tl.uint32) < (2 * width - 1).to(tl.uint32))
        if LOCAL:
            seen = seen & (qpos[:, None] - pos[None, :] >= local)
        k = _columns(kbase, pos, there, stride_kn, d, head_dim, SKIP, PADDED)
        v = _rows(vbase, pos, there, stride_vn, d, head_dim, SKIP, PADDED)
        top, total, acc = _step(q, k, v, seen, top, total, acc, scale_log2, BANDED or SKIP or LOCAL, EXACT)
    for start in range(free, last, KEYS):
        there = start + s < last
        pos = tl.load(key_pos + sorted_list + start + s, mask=there, other=0)
        there = there & (pos >= skip)
        seen = there[None, :] & (pos[None, :] <= qpos[:, None])
        if BANDED:
            rank = tl.load(key_rank + sorted_list + start + s, mask=there, other=0)
            seen = seen & ((qreach[:, None] - rank[None, :]).to(tl.uint32) < (2 * width - 1).to(tl.uint32))
        if LOCAL:
            seen = seen & (qpos[:, None] - pos[None, :] >= local)
        k = _columns(kbase, pos, there, stride_kn, d, head_dim, True, PADDED)
        v = _rows(vbase, pos, there, stride_vn, d, head_dim, True, PADDED)
        top, total, acc = _step(q, k, v, seen, top, total, acc, scale_log2, True, EXACT)
    some = tl.where(total == 0.0, 1.0, total)
    place = output + (row * head_dim)[:, None] + d[None, :]
    tl.store(place, (acc / some[:, None]).to(output.dtype.element_ty), mask=inside)
    if PART:
        found = (top * scale_log2 + tl.log2(some)) * LN_2
        tl.store(lse + row, tl.where(total == 0.0, -float("inf"), found), mask=real)


# fmt: off
@triton.jit(do_not_specialize=[*_PLAIN, "num_chosen", "num_runs", "all_runs", "run_size"])
def _attend_requests(
    query, key, value, output, lse, order, tile_run, tile_start, tile_count,
    stride_qb, stride_qh, stride_qn, stride_kb, stride_kh, stride_kn, stride_vb, stride_vh, stride_vn,
    num_queries, first, num_chosen, num_runs, all_runs, run_size, skip, local, scale_log2, kv_heads, head_dim, group,
    ROWS: tl.constexpr, KEYS: tl.constexpr, DIM: tl.constexpr, SKIP: tl.constexpr, LOCAL: tl.constexpr,
    PADDED: tl.constexpr, EXACT: tl.constexpr,
):
    # fmt: on
    tile = tl.program_id(0)
    run = tl.load(tile_run + tile)
    if run >= all_runs:
        return
    m, d, s = tl.arange(0, ROWS), tl.arange(0, DIM), tl.arange(0, KEYS)
    real = m < tl.load(tile_count + tile)
    pair = tl.load(order + tl.load(tile_start + tile) + m, mask=real, other=0)
    row = pair // num_chosen
    at, qhead = row % num_queries, row // num_queries
    batch, head = run // num_runs // kv_heads, run // num_runs % kv_heads
    qhead = qhead - batch * kv_heads * group
    inside = real[:, None] & (d < head_dim)[None, :]
    place = query + batch.to(tl.int64) * stride_qb + (qhead * stride_qh + at * stride_qn)[:, None] + d[None, :]
    q = tl.load(place, mask=inside, other=0.0)
    kbase = key + batch.to(tl.int64) * stride_kb + head.to(tl.int64) * stride_kh
    vbase = value + batch.to(tl.int64) * stride_vb + head.to(tl.int64) * stride_vh
    top = tl.full([ROWS], -1.0e30, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, DIM], tl.float32)
    begin = run % num_runs * run_size
    whole = run_size // KEYS * KEYS
    for start in range(0, whole, KEYS):
        pos = begin + start + s
        there = pos >= skip
        seen = there[None, :] & real[:, None]
        if LOCAL:
            seen = seen & (at[:, None] + first - pos[None, :] >= local)
        k = _columns(kbase, pos, there, stride_kn, d, head_dim, SKIP, PADDED)
        v = _rows(vbase, pos, there, stride_vn, d, head_dim, SKIP, PADDED)
        top, total, acc = _step(q, k, v, seen, top, total, acc, scale_log2, SKIP or LOCAL, EXACT)
    if whole < run_size:
        pos = begin + whole + s
        there = (whole + s < run_size) & (pos >= skip)
        seen = there[None, :] & real[:, None]
        if LOCAL:
            seen = seen & (at[:, None] + first - pos[None, :] >= local)
        k = _columns(kbase, pos, there, stride_kn, d, head_dim, True, PADDED)
        v = _rows(vbase, pos, there, stride_vn, d, head_dim, True, PADDED)
        top, total, acc = _step(q, k, v, seen, top, total, acc, scale_log2, True, EXACT)
    some = tl.where(total == 0.0, 1.0, total)
    place = output + (pair * head_dim)[:, None] + d[None, :]
    tl.store(place, (acc / some[:, None]).to(output.dtype.element_ty), mask=inside)
    found = (top * scale_log2 + tl.log2(some)) * LN_2
    tl.store(lse + pair, tl.where(total == 0.0, -float("inf"), found), mask=real)


def attend_plan(
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
        _attend_plan,
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


def attend_requests(
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
        _attend_requests,
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
