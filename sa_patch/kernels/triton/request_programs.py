"""The Triton programs for selected runs of keys: queries are collected by the run they asked for. Forward only.

`wanted_program`: which run each (query, chosen) pair wants. `table_program`: where the sorted pairs of a run begin, and
which tiles they fall into. `requests_program`: attention of the tiles.
"""

import triton
import triton.language as tl

from sa_patch.kernels.triton.programs import LN_2, _dot, _rows, _step

# Numbers for which Triton shall not compile a program anew.
_PLAIN = ["num_queries", "first", "skip", "local", "kv_heads", "group"]


# fmt: off
@triton.jit(do_not_specialize=["pairs", "per_head", "heads", "kv_heads", "num_runs", "none"])
def wanted_program(
    selected, wanted, lse, pairs, per_head, heads, kv_heads, num_runs, none, SIZE: tl.constexpr,
):
    # fmt: on
    pair = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    there = pair < pairs
    chosen = tl.load(selected + pair, mask=there, other=-1)
    line = pair // per_head  # batch x heads
    owner = line // heads * kv_heads + line % heads // (heads // kv_heads)
    run = tl.where(chosen < 0, none, owner * num_runs + chosen)
    tl.store(wanted + pair, run.to(wanted.dtype.element_ty), mask=there)
    tl.store(lse + pair, tl.full([SIZE], -float("inf"), tl.float32), mask=there)


# fmt: off
@triton.jit(do_not_specialize=["pairs", "all_runs", "steps"])
def table_program(wanted, begin, end, pairs, all_runs, steps, ROWS: tl.constexpr, RUNS: tl.constexpr):
    # fmt: on
    e, tiles = tl.arange(0, RUNS), 0
    for start in range(0, all_runs, RUNS):
        run = start + e
        # The first pair that wants this run or a later one, and the one after its last.
        low, high = tl.zeros([RUNS], tl.int32), tl.zeros([RUNS], tl.int32)
        low_end, high_end = low + pairs, high + pairs
        for _ in range(steps):
            half, half_end = (low + low_end) // 2, (high + high_end) // 2
            less = tl.load(wanted + half, mask=half < pairs, other=0).to(tl.int32) < run
            upto = tl.load(wanted + half_end, mask=half_end < pairs, other=0).to(tl.int32) <= run
            go, go_end = (low < low_end) & less, (high < high_end) & upto
            low_end, low = tl.where(less, low_end, half), tl.where(go, half + 1, low)
            high_end, high = tl.where(upto, high_end, half_end), tl.where(go_end, half_end + 1, high)
        there = run < all_runs
        count = tl.where(there, (high - low + ROWS - 1) // ROWS, 0)
        tl.store(begin + run, low, mask=there)
        tl.store(begin + run + 1, high, mask=run == all_runs - 1)
        tl.store(end + run, tiles + tl.cumsum(count, 0), mask=there)
        tiles += tl.sum(count, 0)


# fmt: off
@triton.jit(do_not_specialize=[*_PLAIN, "num_chosen", "num_runs", "all_runs", "run_size"])
def requests_program(
    query, key, value, output, lse, order, begin_of, end_of,
    stride_qb, stride_qh, stride_qn, stride_kb, stride_kh, stride_kn, stride_vb, stride_vh, stride_vn,
    num_queries, first, num_chosen, num_runs, all_runs, run_size, skip, local, scale_log2, kv_heads, head_dim, group,
    ROWS: tl.constexpr, KEYS: tl.constexpr, DIM: tl.constexpr, RUNS: tl.constexpr, LOCAL: tl.constexpr,
    PADDED: tl.constexpr, EXACT: tl.constexpr,
):
    # fmt: on
    tile = tl.program_id(0)
    # The run whose tiles end after this one: as many end before as have numbers below it.
    run, e = 0, tl.arange(0, RUNS)
    for start in range(0, all_runs, RUNS):
        ends = tl.load(end_of + start + e, mask=start + e < all_runs, other=2147483647)
        run += tl.sum((ends <= tile).to(tl.int32), 0)
    if run >= all_runs:
        return
    before = tl.load(end_of + run - 1, mask=run > 0, other=0)
    start_at, stop_at = tl.load(begin_of + run) + (tile - before) * ROWS, tl.load(begin_of + run + 1)
    m, d, s = tl.arange(0, ROWS), tl.arange(0, DIM), tl.arange(0, KEYS)
    real = start_at + m < stop_at
    pair = tl.load(order + start_at + m, mask=real, other=0)
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
    origin = run % num_runs * run_size
    for start in range(0, run_size, KEYS):
        pos = origin + start + s
        place = tl.minimum(pos, origin + run_size - 1)
        k = _rows(kbase, place, stride_kn, d, head_dim, PADDED)
        v = _rows(vbase, place, stride_vn, d, head_dim, PADDED)
        scores = _dot(q, tl.trans(k), EXACT)
        if (start + KEYS > run_size) | (origin + start < skip):
            seen = (start + s < run_size) & (pos >= skip)
            scores = tl.where(seen[None, :], scores, -float("inf"))
        if LOCAL:
            scores = tl.where(at[:, None] + first - pos[None, :] >= local, scores, -float("inf"))
        top, total, acc = _step(scores, v, top, total, acc, scale_log2, EXACT)
    some = tl.where(total == 0.0, 1.0, total)
    pointers = output + (pair * head_dim)[:, None] + d[None, :]
    tl.store(pointers, (acc / some[:, None]).to(output.dtype.element_ty), mask=inside)
    found = (top * scale_log2 + tl.log2(some)) * LN_2
    tl.store(lse + pair, tl.where(total == 0.0, -float("inf"), found), mask=real)
