"""The Triton programs of the backward pass (Dao 2023, arXiv 2307.08691, algorithm 2), without atomics.

`query_gradient_program`: tiles of queries against the lists of keys that the forward pass takes.
`key_gradient_program`: tiles of keys against lists of queries, of all heads that share a kv head; positions in its
plans count from the end, so that a list's visible queries come first.
Both compute weights again from the log-sum-exp, in base 2.
"""

import triton
import triton.language as tl

from sa_patch.kernels.triton.programs import _dot, _rows

_PLAIN = ["num_queries", "first", "length", "skip", "kv_heads", "group"]


@triton.jit
def _near(query_rank, key_rank, width):
    return (query_rank[:, None] + width - 1 - key_rank[None, :]).to(tl.uint32) < (2 * width - 1).to(tl.uint32)


# fmt: off
@triton.jit(do_not_specialize=_PLAIN)
def query_gradient_program(
    query, key, value, grad, query_grad, lse, delta,
    query_pos, query_rank, key_pos, key_rank, facts,
    stride_qb, stride_qh, stride_qn, stride_kb, stride_kh, stride_kn, stride_vb, stride_vh, stride_vn,
    stride_gb, stride_gh, stride_gn,
    num_queries, first, length, skip, scaling, scale_log2, kv_heads, head_dim, group,
    ROWS: tl.constexpr, GROUP: tl.constexpr, KEYS: tl.constexpr, DIM: tl.constexpr, FACTS: tl.constexpr,
    BANDED: tl.constexpr, SINKS: tl.constexpr, PADDED: tl.constexpr, EXACT: tl.constexpr,
):
    # fmt: on
    tile = tl.program_id(0)
    batch, head = (tl.program_id(1) // kv_heads).to(tl.int64), tl.program_id(1) % kv_heads
    fact = facts + tile * FACTS
    number, last, width = tl.load(fact), tl.load(fact + 2), tl.load(fact + 4)
    m, d, s = tl.arange(0, ROWS * GROUP), tl.arange(0, DIM), tl.arange(0, KEYS)
    qpos, qrank = tl.load(query_pos + tile * ROWS + m % ROWS), tl.load(query_rank + tile * ROWS + m % ROWS)
    member = m // ROWS
    real = (qpos >= 0) & (member < group)
    at = tl.where(real, qpos - first, 0).to(tl.int64)
    qhead = (head * group + member).to(tl.int64)
    inside = real[:, None] & (d < head_dim)[None, :]
    place = batch * stride_qb + qhead * stride_qh + at * stride_qn
    q = tl.load(query + place[:, None] + d[None, :], mask=inside, other=0.0)
    place = batch * stride_gb + qhead * stride_gh + at * stride_gn
    g = tl.load(grad + place[:, None] + d[None, :], mask=inside, other=0.0)
    row = (batch * kv_heads * group + qhead) * num_queries + at
    level, share = tl.load(lse + row, mask=real, other=0.0), tl.load(delta + row, mask=real, other=0.0)
    kbase = key + batch * stride_kb + head.to(tl.int64) * stride_kh
    vbase = value + batch * stride_vb + head.to(tl.int64) * stride_vh
    key_list, rank_list = key_pos + number.to(tl.int64) * KEYS, key_rank + number.to(tl.int64) * KEYS
    acc = tl.zeros([ROWS * GROUP, DIM], tl.float32)
    for start in range(0, last, KEYS):
        pos = tl.load(key_list + start + s)
        known = tl.minimum(pos, length - 1)
        k = _rows(kbase, known, stride_kn, d, head_dim, PADDED)
        v = _rows(vbase, known, stride_vn, d, head_dim, PADDED)
        weights = tl.exp2(_dot(q, tl.trans(k), EXACT) * scale_log2 - level[:, None])
        seen = pos[None, :] <= qpos[:, None]
        if BANDED:
            near = _near(qrank, tl.load(rank_list + start + s), width)
            if SINKS:
                near = near | (start + s < skip)[None, :]
            seen = seen & near
        weights = tl.where(seen, weights, 0.0)
        change = weights * (_dot(g, tl.trans(v), EXACT) - share[:, None])
        acc += _dot(change.to(k.dtype), k, EXACT)
    pointers = query_grad + (row * head_dim)[:, None] + d[None, :]
    tl.store(pointers, (acc * scaling).to(query_grad.dtype.element_ty), mask=inside)


# fmt: off
@triton.jit(do_not_specialize=[*_PLAIN, "num_slots"])
def key_gradient_program(
    query, key, value, grad, key_grad, lse, delta, value_grad,
    key_pos, key_rank, query_pos, query_rank, facts,
    stride_qb, stride_qh, stride_qn, stride_kb, stride_kh, stride_kn, stride_vb, stride_vh, stride_vn,
    stride_gb, stride_gh, stride_gn,
    num_queries, first, length, num_slots, scaling, scale_log2, kv_heads, head_dim, group,
    ROWS: tl.constexpr, GROUP: tl.constexpr, KEYS: tl.constexpr, DIM: tl.constexpr, FACTS: tl.constexpr,
    BANDED: tl.constexpr, BY_TILE: tl.constexpr, PADDED: tl.constexpr, EXACT: tl.constexpr,
):
    # fmt: on
    tile = tl.program_id(0)
    batch, head = (tl.program_id(1) // kv_heads).to(tl.int64), tl.program_id(1) % kv_heads
    fact = facts + tile * FACTS
    number, last, width = tl.load(fact), tl.load(fact + 2), tl.load(fact + 4)
    m, d, s = tl.arange(0, ROWS * GROUP), tl.arange(0, DIM), tl.arange(0, KEYS)
    kpos, krank = tl.load(key_pos + tile * KEYS + s), tl.load(key_rank + tile * KEYS + s)
    there = kpos >= 0
    place = tl.where(there, length - 1 - kpos, 0)
    k = _rows(key + batch * stride_kb + head.to(tl.int64) * stride_kh, place, stride_kn, d, head_dim, PADDED)
    v = _rows(value + batch * stride_vb + head.to(tl.int64) * stride_vh, place, stride_vn, d, head_dim, PADDED)
    member = m // ROWS
    qhead = (head * group + member).to(tl.int64)
    qbase = query + batch * stride_qb + qhead * stride_qh
    gbase = grad + batch * stride_gb + qhead * stride_gh
    line = (batch * kv_heads * group + qhead) * num_queries
    query_list, rank_list = query_pos + number.to(tl.int64) * ROWS, query_rank + number.to(tl.int64) * ROWS
    k_acc, v_acc = tl.zeros([KEYS, DIM], tl.float32), tl.zeros([KEYS, DIM], tl.float32)
    for start in range(0, last, ROWS):
        qpos = tl.load(query_list + start + m % ROWS)
        real = (qpos < length) & (member < group)
        at = tl.where(real, length - 1 - qpos - first, 0).to(tl.int64)
        inside = real[:, None] & (d < head_dim)[None, :]
        q = tl.load(qbase[:, None] + (at * stride_qn)[:, None] + d[None, :], mask=inside, other=0.0)
        g = tl.load(gbase[:, None] + (at * stride_gn)[:, None] + d[None, :], mask=inside, other=0.0)
        level, share = tl.load(lse + line + at, mask=real, other=0.0), tl.load(delta + line + at, mask=real, other=0.0)
        weights = tl.exp2(_dot(q, tl.trans(k), EXACT) * scale_log2 - level[:, None])
        seen = real[:, None] & (qpos[:, None] <= kpos[None, :])
        if BANDED:
            seen = seen & _near(tl.load(rank_list + start + m % ROWS), krank, width)
        weights = tl.where(seen, weights, 0.0)
        v_acc += _dot(tl.trans(weights.to(g.dtype)), g, EXACT)
        change = weights * (_dot(g, tl.trans(v), EXACT) - share[:, None])
        k_acc += _dot(tl.trans(change.to(q.dtype)), q, EXACT)
    # Where every tile has slots of its own, several hold parts for the same keys.
    slot = tile * KEYS + s if BY_TILE else place
    to = ((batch * kv_heads + head) * num_slots + slot) * head_dim
    stored = there[:, None] & (d < head_dim)[None, :]
    tl.store(key_grad + to[:, None] + d[None, :], (k_acc * scaling).to(key_grad.dtype.element_ty), mask=stored)
    tl.store(value_grad + to[:, None] + d[None, :], v_acc.to(value_grad.dtype.element_ty), mask=stored)
