"""The Triton programs of the `triton` kernel. Forward only.

`plan_program`: planned tiles of queries against sorted lists of keys, gathered, in one pass. A tile holds some tokens
of all heads that share a kv head, so that keys are loaded once for the group. Keys in a tile's future are never
visited. Ranks are compared in bands, positions only where keys may be in the future of a query of the tile.
`requests_program`: queries collected by the run of keys they asked for.
"""

import triton
import triton.language as tl

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
    pointers = base + (pos.to(tl.int64) * stride)[None, :] + d[:, None]
    if MASKED:
        tile = tl.load(pointers, mask=there[None, :] & (d < head_dim)[:, None], other=0.0)
    elif PADDED:
        tile = tl.load(pointers, mask=(d < head_dim)[:, None], other=0.0)
    else:
        tile = tl.load(pointers)
    return tile


@triton.jit
def _rows(base, pos, there, stride, d, head_dim, MASKED: tl.constexpr, PADDED: tl.constexpr):
    """Values at some positions: [keys, d]."""
    pointers = base + (pos.to(tl.int64) * stride)[:, None] + d[None, :]
    if MASKED:
        tile = tl.load(pointers, mask=there[:, None] & (d < head_dim)[None, :], other=0.0)
    elif PADDED:
        tile = tl.load(pointers, mask=(d < head_dim)[None, :], other=0.0)
    else:
        tile = tl.load(pointers)
    return tile


# Numbers that change from call to call. Triton would compile a program anew for every 1 and every multiple of 16 among
# them, without being any faster.
_PLAIN = ["num_queries", "first", "skip", "local", "kv_heads", "group"]


# fmt: off
@triton.jit(do_not_specialize=[*_PLAIN, "span", "width"])
def plan_program(
    query, key, value, output, lse, prior_output, prior_lse,
    query_pos, query_rank, key_pos, key_rank, past, stop,
    stride_qb, stride_qh, stride_qn, stride_kb, stride_kh, stride_kn, stride_vb, stride_vh, stride_vn,
    num_queries, first, span, width, skip, local, scale_log2, kv_heads, head_dim, group,
    ROWS: tl.constexpr, GROUP: tl.constexpr, KEYS: tl.constexpr, DIM: tl.constexpr, TILES: tl.constexpr,
    BANDED: tl.constexpr, SKIP: tl.constexpr, SINKS: tl.constexpr, LOCAL: tl.constexpr, PRIORS: tl.constexpr,
    PADDED: tl.constexpr, EXACT: tl.constexpr, WITH_LSE: tl.constexpr,
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
    pointers = query + batch.to(tl.int64) * stride_qb + (qhead * stride_qh + at * stride_qn)[:, None] + d[None, :]
    q = tl.load(pointers, mask=inside, other=0.0)
    kbase = key + batch.to(tl.int64) * stride_kb + head.to(tl.int64) * stride_kh
    vbase = value + batch.to(tl.int64) * stride_vb + head.to(tl.int64) * stride_vh
    # Large and finite: with -inf, a row without keys would subtract infinities.
    top = tl.full([ROWS * GROUP], -1.0e30, tl.float32)
    total = tl.zeros([ROWS * GROUP], tl.float32)
    acc = tl.zeros([ROWS * GROUP, DIM], tl.float32)
    row = (batch.to(tl.int64) * kv_heads * group + qhead) * num_queries + at
    for prior in tl.static_range(PRIORS):
        weight = tl.load(prior_lse + row * PRIORS + prior, mask=real, other=-float("inf")) / (scale_log2 * LN_2)
        pointers = prior_output + ((row * PRIORS + prior) * head_dim)[:, None] + d[None, :]
        part = tl.load(pointers, mask=inside & (weight > -float("inf"))[:, None], other=0.0)
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
    for start in range(0, free, KEYS):  # keys before every query of the tile
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
    pointers = output + (row * head_dim)[:, None] + d[None, :]
    tl.store(pointers, (acc / some[:, None]).to(output.dtype.element_ty), mask=inside)
    if WITH_LSE:
        found = (top * scale_log2 + tl.log2(some)) * LN_2
        tl.store(lse + row, tl.where(total == 0.0, -float("inf"), found), mask=real)


# fmt: off
@triton.jit(do_not_specialize=[*_PLAIN, "num_chosen", "num_runs", "all_runs", "run_size"])
def requests_program(
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
    pointers = query + batch.to(tl.int64) * stride_qb + (qhead * stride_qh + at * stride_qn)[:, None] + d[None, :]
    q = tl.load(pointers, mask=inside, other=0.0)
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
    pointers = output + (pair * head_dim)[:, None] + d[None, :]
    tl.store(pointers, (acc / some[:, None]).to(output.dtype.element_ty), mask=inside)
    found = (top * scale_log2 + tl.log2(some)) * LN_2
    tl.store(lse + pair, tl.where(total == 0.0, -float("inf"), found), mask=real)
