"""The Triton programs of routers: statistics of blocks of keys, and who scores them how high. No gradients.

`statistics_program`: mean and variance of the keys of a block. `nearest_program`: the best earlier block of every
query. `votes_program`: what queries that choose together think of every block.
"""

import triton
import triton.language as tl

from sa_patch.kernels.triton.programs import _dot

# Numbers for which Triton shall not compile a program anew.
_PLAIN = ["num_queries", "first", "kv_heads", "group", "num_blocks", "begin", "local"]


# fmt: off
@triton.jit(do_not_specialize=["begin", "num_blocks", "kv_heads", "size", "step"])
def statistics_program(
    key, statistics, stride_kb, stride_kh, stride_kn, begin, num_blocks, kv_heads, size, step, head_dim,
    ROWS: tl.constexpr, DIM: tl.constexpr, PARTS: tl.constexpr, SPREAD: tl.constexpr,
):
    # fmt: on
    block, owner = tl.program_id(0), tl.program_id(1)
    batch, head = (owner // kv_heads).to(tl.int64), (owner % kv_heads).to(tl.int64)
    s, d = tl.arange(0, ROWS), tl.arange(0, DIM)
    base = key + batch * stride_kb + head * stride_kh + (begin + block.to(tl.int64) * size) * stride_kn
    mean = tl.zeros([DIM], tl.float32)
    for start in range(0, size, ROWS):
        inside = (start + s < size)[:, None] & (d < head_dim)[None, :]
        keys = tl.load(base + (start + s).to(tl.int64)[:, None] * stride_kn + d[None, :], mask=inside, other=0.0)
        mean += tl.sum(keys.to(tl.float32), 0)
    mean = mean / size
    at = statistics + (owner.to(tl.int64) * num_blocks + block) * DIM + d
    # A float32 number is the sum of three bfloat16 numbers.
    rest = mean
    for _ in tl.static_range(PARTS):
        part = rest.to(statistics.dtype.element_ty)
        tl.store(at, part)
        rest = rest - part.to(tl.float32)
        at += step.to(tl.int64) * DIM
    if SPREAD:
        spread = tl.zeros([DIM], tl.float32)
        for start in range(0, size, ROWS):
            inside = (start + s < size)[:, None] & (d < head_dim)[None, :]
            keys = tl.load(base + (start + s).to(tl.int64)[:, None] * stride_kn + d[None, :], mask=inside, other=0.0)
            off = tl.where(inside, keys.to(tl.float32) - mean[None, :], 0.0)
            spread += tl.sum(off * off, 0)
        tl.store(at, (spread / size).to(statistics.dtype.element_ty))


# fmt: off
@triton.jit(do_not_specialize=[*_PLAIN, "size", "owners"])
def nearest_program(
    query, statistics, best, stride_qb, stride_qh, stride_qn,
    num_queries, first, size, num_blocks, owners, kv_heads, head_dim, group,
    ROWS: tl.constexpr, GROUP: tl.constexpr, BLOCKS: tl.constexpr, DIM: tl.constexpr, PARTS: tl.constexpr,
    EXACT: tl.constexpr,
):
    # fmt: on
    tile, owner = tl.program_id(0), tl.program_id(1)
    batch, head = (owner // kv_heads).to(tl.int64), owner % kv_heads
    m, d, s = tl.arange(0, ROWS * GROUP), tl.arange(0, DIM), tl.arange(0, BLOCKS)
    at, member = tile * ROWS + m % ROWS, m // ROWS
    qhead = (head * group + member).to(tl.int64)
    real = (at < num_queries) & (member < group)
    pointers = query + batch * stride_qb + (qhead * stride_qh + at.to(tl.int64) * stride_qn)[:, None] + d[None, :]
    q = tl.load(pointers, mask=real[:, None] & (d < head_dim)[None, :], other=0.0)
    q = q.to(statistics.dtype.element_ty)
    own = (first + at) // size
    top = tl.full([ROWS * GROUP], -float("inf"), tl.float32)
    found = tl.where(own > 0, 0, -1)
    for start in range(0, (first + tl.minimum(tile * ROWS + ROWS, num_queries) - 1) // size, BLOCKS):
        block = start + s
        place = tl.minimum(block, num_blocks - 1)
        scores = tl.zeros([ROWS * GROUP, BLOCKS], tl.float32)
        for part in tl.static_range(PARTS):
            line = ((part * owners + owner).to(tl.int64) * num_blocks + place) * DIM
            means = tl.load(statistics + line[:, None] + d[None, :])
            scores += _dot(q, tl.trans(means), EXACT)
        scores = tl.where(block[None, :] < own[:, None], scores, -float("inf"))
        high, index = tl.max(scores, 1, return_indices=True)
        found = tl.where(high > top, start + index, found)
        top = tl.maximum(top, high)
    pointers = best + (batch * kv_heads * group + qhead) * num_queries + at
    tl.store(pointers, found.to(tl.int64), mask=real)


@triton.jit
def _scores(
    q, squares, statistics, source, step, d, start, s, allowed, num_blocks, DIM: tl.constexpr, SPREAD: tl.constexpr,
    EXACT: tl.constexpr,
):  # fmt: skip
    """Scores of some blocks, unscaled: [rows, blocks]."""
    line = (source + tl.minimum(start + s, num_blocks - 1)) * DIM
    scores = _dot(q, tl.trans(tl.load(statistics + line[:, None] + d[None, :])), EXACT)
    if SPREAD:
        spread = tl.load(statistics + step.to(tl.int64) * DIM + line[:, None] + d[None, :])
        scores += _dot(squares, tl.trans(spread), EXACT)
    if start + s.shape[0] > allowed:
        scores = tl.where((start + s < allowed)[None, :], scores, -float("inf"))
    return scores


# fmt: off
@triton.jit(do_not_specialize=[*_PLAIN, "query_block", "choosers", "tile_from", "tiles", "most", "step"])
def votes_program(
    query, statistics, votes, stride_qb, stride_qh, stride_qn,
    num_queries, first, begin, local, query_block, choosers, tile_from, tiles, most, num_blocks, step, scale, share,
    kv_heads, head_dim, group,
    ROWS: tl.constexpr, GROUP: tl.constexpr, BLOCKS: tl.constexpr, DIM: tl.constexpr, BLOCK: tl.constexpr,
    SPREAD: tl.constexpr, EXACT: tl.constexpr,
):
    # fmt: on
    line, owner = tl.program_id(0), tl.program_id(1)
    tile, batch, chooser = tile_from + line, (owner // choosers).to(tl.int64), owner % choosers
    m, d, s = tl.arange(0, ROWS * GROUP), tl.arange(0, DIM), tl.arange(0, BLOCKS)
    row, member = m % ROWS, m // ROWS
    at = tile * query_block + row
    real = (row < query_block) & (at < num_queries) & (member < group)
    qhead = (chooser * group + member).to(tl.int64)
    pointers = query + batch * stride_qb + (qhead * stride_qh + at.to(tl.int64) * stride_qn)[:, None] + d[None, :]
    q = tl.load(pointers, mask=real[:, None] & (d < head_dim)[None, :], other=0.0)
    wide = q.to(tl.float32)
    squares = (wide * wide * share).to(statistics.dtype.element_ty)
    q = q.to(statistics.dtype.element_ty)
    allowed = tl.maximum(first + tile * query_block + 1 - local - begin, 0) // BLOCK
    source = (batch * kv_heads + chooser // (choosers // kv_heads)) * num_blocks  # int64, as batch is
    top = tl.full([ROWS * GROUP], -1.0e30, tl.float32)
    total = tl.zeros([ROWS * GROUP], tl.float32)
    for start in range(0, allowed, BLOCKS):
        scores = _scores(q, squares, statistics, source, step, d, start, s, allowed, num_blocks, DIM, SPREAD, EXACT)
        new = tl.maximum(top, tl.max(scores, 1))
        shrink = tl.exp2((top - new) * scale)
        total = total * shrink + tl.sum(tl.exp2(scores * scale - (new * scale)[:, None]), 1)
        top = new
    # Every query has one vote, divided over the blocks like its attention would be.
    level = tl.where(real & (total > 0), top * scale + tl.log2(tl.maximum(total, 1.0)), float("inf"))
    out = votes + (owner.to(tl.int64) * tiles + line) * most
    for start in range(0, allowed, BLOCKS):
        scores = _scores(q, squares, statistics, source, step, d, start, s, allowed, num_blocks, DIM, SPREAD, EXACT)
        found = tl.sum(tl.exp2(scores * scale - level[:, None]), 0)
        block = start + s
        tl.store(out + block, tl.where(block < allowed, found, -float("inf")), mask=block < most)
    for start in range((allowed + BLOCKS - 1) // BLOCKS * BLOCKS, most, BLOCKS):
        tl.store(out + start + s, tl.full([BLOCKS], -float("inf"), tl.float32), mask=start + s < most)
