"""The Triton programs of the `triton` kernel, and how they are launched. Forward only.

`attend_plan`: planned tiles of queries against sorted lists of keys, gathered, in one pass. A tile holds some tokens of
all heads that share a kv head, so that keys are loaded once for the group. Keys in a tile's future are never visited;
what is near by rank is masked inside. `attend_requests`: queries collected by the run of keys they asked for.
Imports torch and triton only.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sa_patch.kernels.plan import Plan, Requests

LOG2_E = 1.4426950408889634
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _step(q, k, v, seen, top, total, acc, scale_log2, EXACT: tl.constexpr):
    """Online softmax over one more tile of keys; rows that see nothing so far stay at zero."""
    scores = tl.dot(q, k, input_precision="ieee") if EXACT else tl.dot(q, k)
    scores = tl.where(seen, scores * scale_log2, -float("inf"))
    new = tl.maximum(top, tl.max(scores, 1))
    weights = tl.exp2(scores - new[:, None])
    shrink = tl.exp2(top - new)
    total = total * shrink + tl.sum(weights, 1)
    if EXACT:
        acc = acc * shrink[:, None] + tl.dot(weights, v, input_precision="ieee")
    else:
        acc = acc * shrink[:, None] + tl.dot(weights.to(v.dtype), v)
    return new, total, acc


@triton.jit
def _load(base, pos, there, stride, d, head_dim, TRANSPOSED: tl.constexpr):
    """Rows of keys [d, keys] or values [keys, d] at some positions."""
    if TRANSPOSED:
        place = base + pos.to(tl.int64)[None, :] * stride + d[:, None]
        return tl.load(place, mask=there[None, :] & (d < head_dim)[:, None], other=0.0)
    place = base + pos.to(tl.int64)[:, None] * stride + d[None, :]
    return tl.load(place, mask=there[:, None] & (d < head_dim)[None, :], other=0.0)


# fmt: off
@triton.jit
def _attend_plan(
    query, key, value, output, lse, prior_output, prior_lse,
    query_pos, query_rank, key_pos, key_rank, stop,
    stride_qb, stride_qh, stride_qn, stride_kb, stride_kh, stride_kn, stride_vb, stride_vh, stride_vn,
    num_queries, first, span, width, skip, local, scale_log2, kv_heads, head_dim, group,
    ROWS: tl.constexpr, GROUP: tl.constexpr, KEYS: tl.constexpr, DIM: tl.constexpr, TILES: tl.constexpr,
    BANDED: tl.constexpr, SINKS: tl.constexpr, LOCAL: tl.constexpr, PRIORS: tl.constexpr, EXACT: tl.constexpr,
):
    # fmt: on
    tile = tl.program_id(0)
    batch, head = tl.program_id(1) // kv_heads, tl.program_id(1) % kv_heads
    sorted_list = (tile // TILES).to(tl.int64) * span
    m, d, s = tl.arange(0, ROWS * GROUP), tl.arange(0, DIM), tl.arange(0, KEYS)
    qpos = tl.load(query_pos + tile * ROWS + m % ROWS)
    qrank = tl.load(query_rank + tile * ROWS + m % ROWS)
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
    for prior in range(PRIORS):
        weight = tl.load(prior_lse + row * PRIORS + prior, mask=real, other=-float("inf")) * (1.0 / LN_2)
        part = tl.load(prior_output + ((row * PRIORS + prior) * head_dim)[:, None] + d[None, :], mask=inside, other=0.0)
        new = tl.maximum(top, weight)
        share, shrink = tl.exp2(weight - new), tl.exp2(top - new)
        total = total * shrink + share
        acc = acc * shrink[:, None] + part.to(tl.float32) * share[:, None]
        top = new
    if SINKS:
        for start in range(0, skip, KEYS):
            pos = start + s
            seen = (pos < skip)[None, :] & (pos[None, :] <= qpos[:, None])
            k = _load(kbase, pos, pos < skip, stride_kn, d, head_dim, True)
            v = _load(vbase, pos, pos < skip, stride_vn, d, head_dim, False)
            top, total, acc = _step(q, k, v, seen, top, total, acc, scale_log2, EXACT)
    last = tl.load(stop + tile)
    for start in range(0, last, KEYS):
        there = start + s < last
        pos = tl.load(key_pos + sorted_list + start + s, mask=there, other=0)
        there = there & (pos >= skip)
        seen = there[None, :] & (pos[None, :] <= qpos[:, None])
        if BANDED:
            rank = tl.load(key_rank + sorted_list + start + s, mask=there, other=0)
            apart = qrank[:, None] - rank[None, :]
            seen = seen & (apart < width) & (apart > -width)
        if LOCAL:
            seen = seen & (qpos[:, None] - pos[None, :] >= local)
        k = _load(kbase, pos, there, stride_kn, d, head_dim, True)
        v = _load(vbase, pos, there, stride_vn, d, head_dim, False)
        top, total, acc = _step(q, k, v, seen, top, total, acc, scale_log2, EXACT)
    some = tl.where(total == 0.0, 1.0, total)
    place = output + (row * head_dim)[:, None] + d[None, :]
    tl.store(place, (acc / some[:, None]).to(output.dtype.element_ty), mask=inside)
    tl.store(lse + row, tl.where(total == 0.0, -float("inf"), (top + tl.log2(some)) * LN_2), mask=real)


# fmt: off
@triton.jit
def _attend_requests(
    query, key, value, output, lse, order, tile_run, tile_start, tile_count,
    stride_qb, stride_qh, stride_qn, stride_kb, stride_kh, stride_kn, stride_vb, stride_vh, stride_vn,
    num_queries, first, num_chosen, num_runs, all_runs, run_size, skip, local, scale_log2, kv_heads, head_dim, group,
    ROWS: tl.constexpr, KEYS: tl.constexpr, DIM: tl.constexpr, EXCLUDE: tl.constexpr, EXACT: tl.constexpr,
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
    for start in range(0, run_size, KEYS):
        pos = begin + start + s
        there = (start + s < run_size) & (pos >= skip)
        seen = there[None, :] & real[:, None]
        if EXCLUDE:
            seen = seen & (at[:, None] + first - pos[None, :] >= local)
        k = _load(kbase, pos, there, stride_kn, d, head_dim, True)
        v = _load(vbase, pos, there, stride_vn, d, head_dim, False)
        top, total, acc = _step(q, k, v, seen, top, total, acc, scale_log2, EXACT)
    some = tl.where(total == 0.0, 1.0, total)
    place = output + (pair * head_dim)[:, None] + d[None, :]
    tl.store(place, (acc / some[:, None]).to(output.dtype.element_ty), mask=inside)
    tl.store(lse + pair, tl.where(total == 0.0, -float("inf"), (top + tl.log2(some)) * LN_2), mask=real)


def attend_plan(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: Plan,
    scaling: float,
    *,
    first: int,
    skip: int = 0,
    sinks: bool = False,
    local: int = 0,
    prior: tuple[Tensor, Tensor] | None = None,
    exact_output: bool = False,
) -> tuple[Tensor, Tensor]:
    """The pairs of a plan.

    Args:
        query: [batch, heads, q, head_dim]; key, value: [batch, kv_heads, n, head_dim]; head_dim contiguous.
        first: position of the first query.
        skip: keys at positions below it are no part of the plan's lists.
        sinks: they are visible to every later query instead; otherwise to none.
        local: leave out keys whose distance is below it.
        prior: results over other keys to merge: output [batch, heads, q, k, head_dim], log-sum-exp without head_dim.
        exact_output: float32, for a later merge.

    Returns:
        (output [batch, heads, q, head_dim], float32 log-sum-exp [batch, heads, q])
    """
    batch, heads, num_queries, head_dim = query.shape
    kv_heads = key.shape[1]
    output = torch.empty(query.shape, dtype=torch.float32 if exact_output else query.dtype, device=query.device)
    lse = torch.empty(query.shape[:3], dtype=torch.float32, device=query.device)
    rows, group = plan.query_pos.shape[1], heads // kv_heads
    prior_output, prior_lse = (lse, lse) if prior is None else prior
    _attend_plan[(plan.query_pos.shape[0], batch * kv_heads)](
        *(query, key, value, output, lse, prior_output, prior_lse),
        *(plan.query_pos, plan.query_rank, plan.key_pos, plan.key_rank, plan.stop),
        *(stride for tensor in (query, key, value) for stride in tensor.stride()[:3]),
        *(num_queries, first, plan.key_pos.shape[1], plan.width, skip, local, scaling * LOG2_E),
        *(kv_heads, head_dim, group),
        ROWS=rows,
        GROUP=triton.next_power_of_2(group),
        KEYS=plan.keys_per_step,
        DIM=max(16, triton.next_power_of_2(head_dim)),
        TILES=plan.tiles_per_list,
        BANDED=plan.width > 0,
        SINKS=sinks,
        LOCAL=local > 0,
        PRIORS=0 if prior is None else prior_lse.shape[3],
        EXACT=query.dtype == torch.float32,
    )
    return output, lse


def attend_requests(
    query: Tensor, key: Tensor, value: Tensor, requests: Requests, scaling: float, *, first: int, skip: int, local: int
) -> tuple[Tensor, Tensor]:
    """Every query to the whole runs it asked for, each by itself.

    Returns:
        (output [batch, heads, q, k, head_dim], float32 log-sum-exp [batch, heads, q, k]); 0 and -inf for no run.
    """
    batch, heads, num_queries, head_dim = query.shape
    kv_heads = key.shape[1]
    shape = (batch, heads, num_queries, requests.num_chosen)
    output = torch.zeros(*shape, head_dim, dtype=query.dtype, device=query.device)
    lse = torch.full(shape, -torch.inf, dtype=torch.float32, device=query.device)
    _attend_requests[(requests.tile_run.numel(),)](
        *(query, key, value, output, lse),
        *(requests.order, requests.tile_run, requests.tile_start, requests.tile_count),
        *(stride for tensor in (query, key, value) for stride in tensor.stride()[:3]),
        *(num_queries, first, requests.num_chosen, requests.num_runs, batch * kv_heads * requests.num_runs),
        *(requests.run_size, skip, local, scaling * LOG2_E, kv_heads, head_dim, heads // kv_heads),
        ROWS=requests.rows,
        KEYS=requests.keys_per_step,
        DIM=max(16, triton.next_power_of_2(head_dim)),
        EXCLUDE=local > 0,
        EXACT=query.dtype == torch.float32,
    )
    return output, lse
