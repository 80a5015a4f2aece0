"""The Triton programs of the `triton` kernel's forward pass.

`plan_program`: planned tiles of queries against sorted lists of keys, gathered, in one pass. A tile holds some tokens
of all heads that share a kv head, so that keys are loaded once for the group. Keys in a tile's future are never
visited. Ranks are compared in permuted bands, positions only in steps where a query of the tile may not see a key.
`routed_program`: tiles of queries against sinks, the blocks they chose, and their local windows, in one pass.
"""

import triton
import triton.language as tl

LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _dot(a, b, EXACT: tl.constexpr):
    return tl.dot(a, b, input_precision="ieee") if EXACT else tl.dot(a, b)


@triton.jit
def _step(scores, v, top, total, acc, scale_log2, EXACT: tl.constexpr):
    """Online softmax over one more tile of keys; rows that see nothing so far stay at zero.

    `top` is in units of the bare products, so that scaling and subtracting it is one fused multiply-add per score.
    """
    new = tl.maximum(top, tl.max(scores, 1))
    weights = tl.exp2(scores * scale_log2 - (new * scale_log2)[:, None])
    shrink = tl.exp2((top - new) * scale_log2)
    total = total * shrink + tl.sum(weights, 1)
    acc = acc * shrink[:, None] + _dot(weights.to(v.dtype), v, EXACT)
    return new, total, acc


@triton.jit
def _rows(base, place, stride, d, head_dim, PADDED: tl.constexpr):
    """Keys or values at some positions: [keys, d]."""
    pointers = base + (place.to(tl.int64) * stride)[:, None] + d[None, :]
    return tl.load(pointers, mask=(d < head_dim)[None, :], other=0.0) if PADDED else tl.load(pointers)


# Numbers that change from call to call. Triton would compile a program anew for every 1 and every multiple of 16 among
# them, without being any faster.
_PLAIN = ["num_queries", "first", "skip", "local", "kv_heads", "group"]


# fmt: off
@triton.jit(do_not_specialize=[*_PLAIN, "length"])
def plan_program(
    query, key, value, output, lse, prior_output, prior_lse,
    query_pos, query_rank, key_pos, key_rank, facts,
    stride_qb, stride_qh, stride_qn, stride_kb, stride_kh, stride_kn, stride_vb, stride_vh, stride_vn,
    num_queries, first, length, skip, local, scale_log2, kv_heads, head_dim, group,
    ROWS: tl.constexpr, GROUP: tl.constexpr, KEYS: tl.constexpr, DIM: tl.constexpr, FACTS: tl.constexpr,
    BANDED: tl.constexpr, LISTED: tl.constexpr, SINKS: tl.constexpr, PRIORS: tl.constexpr,
    PADDED: tl.constexpr, EXACT: tl.constexpr, WITH_LSE: tl.constexpr,
):
    # fmt: on
    tile = tl.program_id(0)
    batch, head = tl.program_id(1) // kv_heads, tl.program_id(1) % kv_heads
    fact = facts + tile * FACTS
    width = tl.load(fact + 4)
    m, d, s = tl.arange(0, ROWS * GROUP), tl.arange(0, DIM), tl.arange(0, KEYS)
    qpos = tl.load(query_pos + tile * ROWS + m % ROWS)
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
    number, free, last = tl.load(fact), tl.load(fact + 1), tl.load(fact + 2)
    # Positions and ranks are loaded one step ahead, into registers: Triton would pass them through shared memory, every
    # thread all of them, and gather keys a step later.
    if LISTED:
        key_list, rank_list = key_pos + number.to(tl.int64) * KEYS, key_rank + number.to(tl.int64) * KEYS
        ahead = tl.load(key_list + s)
        if BANDED:
            rank_ahead = tl.load(rank_list + s)
            # Ranks differ by less than width where this minus the key's rank, unsigned, is below 2 width - 1.
            reach = tl.load(query_rank + tile * ROWS + m % ROWS) + width - 1
    else:
        begin, old = tl.load(key_pos + number), tl.load(fact + 3)
    for start in range(0, last, KEYS):
        if LISTED:
            pos, following = ahead, (s >= 0) & (start + KEYS < last)
            ahead = tl.load(key_list + start + KEYS + s, mask=following, other=0)
        else:
            pos = begin + start + s
            if SINKS:
                pos = tl.where(start + s < skip, start + s, pos - skip)
        place = tl.minimum(pos, length - 1)
        k = _rows(kbase, place, stride_kn, d, head_dim, PADDED)
        v = _rows(vbase, place, stride_vn, d, head_dim, PADDED)
        products = _dot(q, tl.trans(k), EXACT)
        scores = products
        edge = start + KEYS > free
        if BANDED:
            if LISTED:
                seen = (reach[:, None] - rank_ahead[None, :]).to(tl.uint32) < (2 * width - 1).to(tl.uint32)
                scores = tl.where(seen, scores, -float("inf"))
                rank_ahead = tl.load(rank_list + start + KEYS + s, mask=following, other=0)
            else:
                edge = edge | (start < old)
        if SINKS:
            edge = edge | (start < skip)
        if edge:
            here = tl.load(key_list + start + s) if LISTED else pos
            seen = here[None, :] <= (qpos - local)[:, None]
            if BANDED and not LISTED:
                seen = seen & (here[None, :] > (qpos - width)[:, None])
            if SINKS:
                sink = (start + s < skip)[None, :]
                scores = tl.where(sink, products, scores)
                seen = tl.where(sink, here[None, :] <= qpos[:, None], seen)
            scores = tl.where(seen, scores, -float("inf"))
        top, total, acc = _step(scores, v, top, total, acc, scale_log2, EXACT)
    some = tl.where(total == 0.0, 1.0, total)
    pointers = output + (row * head_dim)[:, None] + d[None, :]
    tl.store(pointers, (acc / some[:, None]).to(output.dtype.element_ty), mask=inside)
    if WITH_LSE:
        found = (top * scale_log2 + tl.log2(some)) * LN_2
        tl.store(lse + row, tl.where(total == 0.0, -float("inf"), found), mask=real)


@triton.jit
def _routed_pos(blocks, i, chosen, sinks, begin, BLOCK: tl.constexpr):
    """Key number i of a tile's list: blocks, sinks, local windows."""
    block = tl.load(blocks + i // BLOCK, mask=i < chosen, other=0).to(tl.int32)
    other = i - chosen
    pos = tl.where(other < sinks, other, begin + other - sinks)
    return tl.where(i < chosen, sinks + tl.maximum(block, 0) * BLOCK + i % BLOCK, pos)


# fmt: off
@triton.jit(do_not_specialize=[*_PLAIN, "length", "whole", "query_block", "count", "choosers", "num_tiles", "parts"])
def routed_program(
    query, key, value, output, selected,
    stride_qb, stride_qh, stride_qn, stride_kb, stride_kh, stride_kn, stride_vb, stride_vh, stride_vn,
    num_queries, first, length, whole, query_block, count, choosers, num_tiles, parts, skip, local, scale_log2,
    kv_heads, head_dim, group,
    ROWS: tl.constexpr, GROUP: tl.constexpr, KEYS: tl.constexpr, DIM: tl.constexpr, BLOCK: tl.constexpr,
    PADDED: tl.constexpr, EXACT: tl.constexpr,
):
    # fmt: on
    tile, part = tl.program_id(0) // parts, tl.program_id(0) % parts
    batch, chooser = tl.program_id(1) // choosers, tl.program_id(1) % choosers
    m, d, s = tl.arange(0, ROWS * GROUP), tl.arange(0, DIM), tl.arange(0, KEYS)
    begin = first + tile * query_block
    row, member = part * ROWS + m % ROWS, m // ROWS
    qpos = begin + row
    real = (row < query_block) & (qpos < length) & (qpos >= whole) & (member < group)
    at, qhead = (qpos - first).to(tl.int64), (chooser * group + member).to(tl.int64)
    inside = real[:, None] & (d < head_dim)[None, :]
    pointers = query + batch.to(tl.int64) * stride_qb + (qhead * stride_qh + at * stride_qn)[:, None] + d[None, :]
    q = tl.load(pointers, mask=inside, other=0.0)
    head = (chooser // (choosers // kv_heads)).to(tl.int64)
    kbase = key + batch.to(tl.int64) * stride_kb + head * stride_kh
    vbase = value + batch.to(tl.int64) * stride_vb + head * stride_vh
    top = tl.full([ROWS * GROUP], -1.0e30, tl.float32)
    total = tl.zeros([ROWS * GROUP], tl.float32)
    acc = tl.zeros([ROWS * GROUP, DIM], tl.float32)
    blocks = selected + (tl.program_id(1).to(tl.int64) * num_tiles + tile) * count
    missing = tl.maximum(count - tl.maximum(begin + 1 - local - skip, 0) // BLOCK, 0) * BLOCK  # they come first
    chosen = count * BLOCK
    # The windows of this part of the tile, and the last key that one of its queries may see.
    near = begin + part * ROWS + 1 - local
    last = tl.minimum(tl.minimum(part * ROWS + ROWS, query_block) + begin, length) - near + chosen + skip
    start_at = missing // KEYS * KEYS
    ahead = _routed_pos(blocks, start_at + s, chosen, skip, near, BLOCK)
    for start in range(start_at, last, KEYS):
        pos = ahead
        ahead = _routed_pos(blocks, start + KEYS + s, chosen, skip, near, BLOCK)
        place = tl.minimum(tl.maximum(pos, 0), length - 1)
        k = _rows(kbase, place, stride_kn, d, head_dim, PADDED)
        v = _rows(vbase, place, stride_vn, d, head_dim, PADDED)
        scores = _dot(q, tl.trans(k), EXACT)
        if (start < missing) | (start + KEYS > chosen):
            i = start + s
            here = near + i - chosen - skip
            open = ((i >= missing) & (i < chosen + skip))[None, :]
            window = (here[None, :] <= qpos[:, None]) & (here[None, :] > (qpos - local)[:, None])
            seen = open | (window & (i >= chosen + skip)[None, :])
            scores = tl.where(seen, scores, -float("inf"))
        top, total, acc = _step(scores, v, top, total, acc, scale_log2, EXACT)
    row_at = (batch.to(tl.int64) * choosers * group + qhead) * num_queries + at
    pointers = output + (row_at * head_dim)[:, None] + d[None, :]
    tl.store(pointers, (acc / tl.where(total == 0.0, 1.0, total)[:, None]).to(output.dtype.element_ty), mask=inside)
