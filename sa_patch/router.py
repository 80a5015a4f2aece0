"""Which blocks of keys the tiles of queries choose, by content.

With torch; on a GPU by Triton's programs, on a CPU with the help of the `cpp` kernel's where that was compiled.

A score estimates log of the attention mass that a query puts on a block. With keys of mean m and covariance C,
log mean exp(s q.k) = s q.m + (s^2 / 2) q'Cq + ...; "mean" takes the first term, "variance" adds half of the second
one with the diagonal of C (all of it overshoots where single keys stand out). Two more are other methods' rules, to be
compared with: "minmax" is Quest's upper bound of q.k over the block (arXiv 2406.10774), "antidiagonal" XAttention's sum
of weights from sampled antidiagonals (arXiv 2503.16428).
"""

import math
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

SCORE_BYTES = (1 << 28, 1 << 23)  # scores held at once: on a GPU, where few launches matter, and on a CPU
VARIANCE_SHARE = 0.5
_STEP = 128  # queries whose sinks and local windows are scored at once


@lru_cache(maxsize=8)
def _compiles(device: torch.device) -> bool:
    """Whether Triton is there and the device is of a kind that its programs are compiled for in the tests."""
    return find_spec("triton") is not None and torch.cuda.get_device_capability(device) >= (8, 0)


def programs(query: Tensor, key: Tensor) -> Any:
    """The routers that are Triton's programs, where they can compute with such tensors; else None."""
    if query.device.type != "cuda" or not _compiles(query.device):
        return None
    from sa_patch.kernels.triton import routers

    return routers if routers.takes(query, key) else None


def block_statistics(key: Tensor, start: int, block_size: int, router: str) -> Tensor:
    """What scores are products with: float32 [rows, kv_heads, blocks, head_dim or 2 head_dim].

    Args:
        key: [rows, kv_heads, length, head_dim].
        start: the first token of block 0; tokens after the last whole block belong to none.
    """
    count = max(0, key.shape[2] - start) // block_size
    blocks = key[:, :, start : start + count * block_size].float().unflatten(2, (count, block_size))
    if router == "minmax":
        return torch.cat([blocks.amax(dim=3), blocks.amin(dim=3)], dim=-1)
    mean = blocks.mean(dim=3)
    return torch.cat([mean, blocks.var(dim=3, unbiased=False)], dim=-1) if router == "variance" else mean


def choose_blocks(
    query: Tensor,
    key: Tensor,
    *,
    start: int,
    block_size: int,
    query_block: int,
    count: int,
    local: int,
    choosers: int,
    router: str,
    scaling: float,
    stride: int = 1,
    pooled: bool = False,
) -> Tensor:
    """The best `count` blocks of every chooser and tile.

    In float32 whatever the dtype, but on a GPU, where several queries choose together, from half-precision factors.

    One query head with tiles of one query chooses by its scores. Where several queries choose together, by the mean of
    their softmax over the blocks that may be chosen. "antidiagonal": by the mean of the softmax, summed over a block,
    of sums of `stride` products along antidiagonals. Of equal scores any may win.

    Pooled, all choosers of a row share choosers x count blocks: those (chooser, block) pairs are taken that hold the
    largest estimated share of their own head's mass, which is that of the blocks that may be chosen, by "mean" or
    "variance", and, exactly, that of sinks and local window.

    Args:
        query: [rows, heads, query_len, head_dim], the last queries of the sequences; the first one starts a tile.
        key: [rows, kv_heads, length, head_dim].
        start, block_size: where blocks lie.
        local: the local window; a tile's blocks end before its first query's window begins.
        choosers: query heads, or kv heads (their query heads choose together).
        router: how blocks are ranked, see above.
        stride: of "antidiagonal"; it divides query_block and block_size.

    Returns:
        int64 [rows, choosers, tiles, count], ascending, -1 first where fewer may be chosen; pooled, as wide as the
        chooser with the most blocks needs.
    """
    rows, heads, query_len, _ = query.shape
    first = key.shape[2] - query_len
    tiles, num_blocks = -(-query_len // query_block), max(0, key.shape[2] - start) // block_size
    made = programs(query, key) if num_blocks and not pooled else None
    lines, votes, statistics = rows * heads * query_block, None, None
    if router == "antidiagonal":
        lines = rows * heads * (query_block // stride) * (block_size // stride)
    elif made is not None and router in ("mean", "variance") and made.Votes.fit(query_block, heads // choosers):
        shape = {"start": start, "block_size": block_size, "query_block": query_block, "local": local}
        spread, lines = VARIANCE_SHARE if router == "variance" else 0.0, rows * choosers
        votes = made.Votes(query, key, choosers=choosers, spread=spread, scaling=scaling, **shape)
    else:
        statistics = block_statistics(key, start, block_size, router)
    step = max(1, SCORE_BYTES[query.device.type == "cpu"] // (4 * lines * max(1, num_blocks)))
    chosen = []
    for tile in range(0, tiles, step):
        begin, end = tile * query_block, min((tile + step) * query_block, query_len)
        places = torch.arange(begin, end, query_block, device=query.device) + first
        allowed = ((places + 1 - local - start).clamp(min=0) // block_size)[:, None]  # [tiles, 1]
        most = min(num_blocks, max(0, end - 1 + first + 1 - local - start) // block_size)
        if most == 0:
            chosen.append(allowed.new_full((rows, choosers, allowed.shape[0], count), -1))
            continue
        if votes is not None:
            weights = votes.of(tile, allowed.shape[0], most)
        elif statistics is None:
            keys = key[:, :, start : start + most * block_size]
            sizes = query_block, block_size, stride, choosers
            weights = _antidiagonal(query[:, :, begin:end], keys, allowed, sizes, scaling)
        else:
            block = torch.arange(most, device=query.device)
            scores = _scores(query[:, :, begin:end], statistics[:, :, :most], router, scaling)
            certain = None
            if pooled:
                mass = certain_mass(query[:, :, begin:end], key, first + begin, start, local, scaling)
                certain = mass - math.log(block_size)
            weights = _together(scores, allowed, block, query_block, block_size, choosers, certain)
        if pooled:
            chosen.append(_pooled(weights, count))
            continue
        chosen.append(largest(weights, min(count, most)))
    width = max(index.shape[-1] for index in chosen) if pooled else count
    return torch.cat(
        [torch.nn.functional.pad(index, (width - index.shape[-1], 0), value=-1) for index in chosen], dim=2
    )


def largest(scores: Tensor, count: int) -> Tensor:
    """The columns of the `count` largest entries of every row: int64 [..., count], ascending, -1 first where fewer are
    above minus infinity. Of equal entries any may win.

    On a CPU by the `cpp` kernel's program where that was compiled before: torch.topk takes twice as long there.
    """
    if scores.device.type == "cpu":
        from sa_patch.kernels.cpp import routers

        if routers.takes(scores):
            return routers.largest(scores, count)
    best = scores.topk(count, dim=-1)
    return best.indices.masked_fill(best.values == -torch.inf, -1).sort(dim=-1).values


def certain_mass(query: Tensor, key: Tensor, first: int, sinks: int, local: int, scaling: float) -> Tensor:
    """log of the weight that queries put on sinks and local window: float32 [rows, heads, q].

    Args:
        query: [rows, heads, q, head_dim], those from position `first` on; key: [rows, kv_heads, length, head_dim].
    """
    grouped, found = (query.float() * scaling).unflatten(1, (key.shape[1], -1)), []
    for start in range(0, query.shape[2], _STEP):
        some = grouped[:, :, :, start : start + _STEP]
        row = torch.arange(some.shape[3], device=query.device)[:, None] + first + start
        low, high = max(0, first + start + 1 - local), first + start + some.shape[3]
        column = torch.cat([torch.arange(end, device=query.device) for end in (min(sinks, low), high)])
        column = torch.cat([column[: min(sinks, low)], column[min(sinks, low) + low :]])
        seen = ((column < sinks) | (row - column < local)) & (column <= row)
        scores = some @ key[:, :, column].float()[:, :, None].transpose(-1, -2)
        found.append(scores.masked_fill(~seen, -torch.inf).logsumexp(-1))
    return torch.cat(found, dim=3).flatten(1, 2)


def _pooled(weights: Tensor, count: int) -> Tensor:
    """The best (chooser, block) pairs of every tile, from weights [rows, choosers, tiles, blocks]."""
    choosers, blocks = weights.shape[1], weights.shape[3]
    flat = weights.transpose(1, 2).flatten(2)
    best = flat.topk(min(choosers * count, flat.shape[-1]), dim=-1)
    picked = torch.zeros_like(flat, dtype=torch.bool).scatter_(-1, best.indices, best.values > -torch.inf)
    picked = picked.unflatten(2, (choosers, blocks)).transpose(1, 2)
    index = torch.where(picked, torch.arange(blocks, device=weights.device), -1).sort(-1).values
    return index[..., blocks - int(picked.sum(-1).max()) :]


def _scores(query: Tensor, statistics: Tensor, router: str, scaling: float) -> Tensor:
    """[rows, heads, q, blocks] from queries [rows, heads, q, head_dim], scaled."""
    exact = query.float() * scaling
    if router == "variance":
        exact = torch.cat([exact, exact.square() * (VARIANCE_SHARE / 2)], dim=-1)
    elif router == "minmax":
        exact = torch.cat([exact.clamp(min=0), exact.clamp(max=0)], dim=-1)
    grouped = exact.unflatten(1, (statistics.shape[1], -1))
    scores = grouped.flatten(2, 3) @ statistics.transpose(-1, -2)  # a group's heads as rows of one product
    return scores.view(*exact.shape[:3], -1)


def _together(
    scores: Tensor,
    allowed: Tensor,
    block: Tensor,
    query_block: int,
    block_size: int,
    choosers: int,
    certain: Tensor | None = None,
) -> Tensor:
    """What tiles and choosers rank blocks by: [rows, choosers, tiles, blocks], -inf where a block may not be chosen.

    Args:
        certain: one more score per query [rows, heads, q], of what is seen anyway: it takes its share.
    """
    heads, queries = scores.shape[1:3]
    tiles = allowed.shape[0]
    # Blocks that the first tile may choose, all may: so many tokens later, so many more may be chosen.
    common = max(0, scores.shape[-1] - -(-tiles * query_block // block_size))
    if query_block == 1 and choosers == heads and certain is None:
        scores[..., common:].masked_fill_(block[common:] >= allowed, -torch.inf)
        return scores
    missing = tiles * query_block - queries
    scores = torch.nn.functional.pad(scores, (0, 0, 0, missing)) if missing else scores
    scores = scores.unflatten(2, (tiles, query_block))
    scores[..., common:].masked_fill_(block[common:] >= allowed[:, None], -torch.inf)
    if certain is not None:
        certain = torch.nn.functional.pad(certain, (0, missing)).unflatten(2, (tiles, query_block))
        scores = torch.cat([scores, certain[..., None]], dim=-1)
    weights = scores.softmax(-1)[..., : block.numel()]
    if tiles and common == 0:
        weights = weights.nan_to_num_(0)  # tiles that may choose none
    if missing:  # rows beyond the last query vote for nothing
        weights[:, :, -1, query_block - missing :] = 0
    votes = weights.unflatten(1, (choosers, -1)).sum(4).sum(2)  # far faster than both at once on a CPU
    return votes.masked_fill_(block >= allowed, -torch.inf)


def _antidiagonal(
    query: Tensor, key: Tensor, allowed: Tensor, sizes: tuple[int, int, int, int], scaling: float
) -> Tensor:
    """As `_together`, for XAttention's rule; queries beyond the last one are zeros.

    Args:
        query: [rows, heads, q, head_dim]; key: [rows, kv_heads, blocks * block_size, head_dim].
        sizes: query_block, block_size, stride, choosers.
    """
    query_block, block_size, stride, choosers = sizes
    tiles, kv_heads = allowed.shape[0], key.shape[1]
    missing = tiles * query_block - query.shape[2]
    rows = torch.nn.functional.pad(query.float(), (0, 0, 0, missing)) if missing else query.float()
    rows = rows.unflatten(2, (-1, stride)).flip(3).flatten(3).unflatten(1, (kv_heads, -1))
    columns = key.float().unflatten(2, (-1, stride)).flatten(3)[:, :, None]
    scores = (rows @ columns.transpose(-1, -2)).flatten(1, 2) * (scaling / stride)
    block = torch.arange(scores.shape[-1], device=query.device) // (block_size // stride)
    scores = scores.unflatten(2, (tiles, -1)).masked_fill_(block >= allowed[:, None], -torch.inf)
    weights = scores.softmax(-1).nan_to_num(0).unflatten(-1, (-1, block_size // stride)).sum((-1, -3))
    votes = weights.unflatten(1, (choosers, -1)).mean(2)
    return votes.masked_fill_(torch.arange(votes.shape[-1], device=query.device) >= allowed, -torch.inf)
