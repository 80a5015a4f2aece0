"""The `triton` kernel: every pattern in O(n w) on a GPU, one pass for window, band, ring, horizons and sinks.

Forward only. A local window beside a permuted pattern, and dense tails, are passes of their own.
"""

from dataclasses import replace
from functools import lru_cache
from importlib.util import find_spec

import torch
from torch import Tensor

from sa_patch.kernels.dense import causal
from sa_patch.kernels.merging import merge
from sa_patch.kernels.requests import make_requests
from sa_patch.kernels.triton.plans import Plan, kept_plan
from sa_patch.kernels.triton.tile_sizes import LARGEST_HEAD, Tile, tile_for, tiles_per_list
from sa_patch.patterns import Band, Blocks, Pattern


@lru_cache(maxsize=1)
def _installed() -> bool:
    return find_spec("triton") is not None


@lru_cache(maxsize=1)
def _interpreted() -> bool:
    from triton import knobs

    return bool(knobs.runtime.interpret)


class Triton:
    name = "triton"

    def refusal(self, pattern: Pattern, query: Tensor, key: Tensor, value: Tensor) -> str | None:
        if pattern.covers_all:
            return None
        if not isinstance(pattern, (Band, Blocks)):
            return f"it has no code for {type(pattern).__name__} patterns"
        if not _installed():
            return "Triton is not installed (pip install sa-patch[triton])"
        kind = query.device.type
        if kind != "cuda" and not _interpreted():
            return f"it needs a GPU, the tensors are on {kind!r}"
        if query.dtype == torch.bfloat16 and _interpreted():
            return "Triton's interpreter multiplies bfloat16 wrongly: use float16 or float32 there"
        if query.dtype == torch.float64:
            return "it computes in float32: use kernel='torch' for float64"
        if query.dim() == 4:
            _, heads, _, head_dim = query.shape
            if head_dim > LARGEST_HEAD:
                return f"head_dim {head_dim} is over {LARGEST_HEAD}"
            rows, kv_heads = _tile(query).rows, key.shape[1]
            if heads // kv_heads > rows:
                return f"{heads} query heads on {kv_heads} key heads are over {rows} a group"
        if torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad):
            return "it has no gradients: use kernel='torch', or torch.no_grad()"
        return None

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, pattern: Pattern, scaling: float) -> Tensor:
        if pattern.covers_all:
            return causal(query, key, value, scaling)
        assert isinstance(pattern, (Band, Blocks)), "refusal() was not asked"
        output = _sparse_rows(_dense_rows(query), _dense_rows(key), _dense_rows(value), pattern, scaling)
        if pattern.tail:
            last = causal(query[:, :, -pattern.tail :], key, value, scaling)
            output = torch.cat([output[:, :, : -pattern.tail], last], dim=2)
        return output


def _dense_rows(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _tile(query: Tensor) -> Tile:
    return tile_for(query.shape[-1], query.dtype == torch.float32)


def _plan(pattern: Band | Blocks, query: Tensor, key: Tensor) -> Plan:
    group = query.shape[1] // key.shape[1]
    rows = max(1, _tile(query).rows // (1 << (group - 1).bit_length()))
    # A sliding window is in order already: longer lists would only hold more keys.
    tiles = tiles_per_list(pattern.width, rows) if isinstance(pattern, Band) and pattern.order is not None else 1
    return kept_plan(pattern, rows, tiles, query.device)


def _sparse_rows(query: Tensor, key: Tensor, value: Tensor, pattern: Band | Blocks, scaling: float) -> Tensor:
    from sa_patch.kernels.triton.launch import plan_part, requests_part

    # A sliding window as wide as `local` contains it; so does the query itself.
    contained = pattern.width if isinstance(pattern, Band) and pattern.order is None else 1
    if 0 < pattern.local <= contained:
        pattern = replace(pattern, local=0)
    if scaling <= 0:  # the programs take the largest product for the largest score
        query, scaling = (-query, -scaling) if scaling else (torch.zeros_like(query), 1.0)
    tile, first, skip = _tile(query), pattern.first, pattern.sinks
    prior, split = None, pattern.local > 0
    if isinstance(pattern, Blocks) and pattern.selected is not None and pattern.selected.shape[-1]:
        requests = make_requests(pattern, key.shape[1], tile.rows)
        prior = requests_part(query, key, value, requests, tile, scaling, first=first, skip=skip, local=pattern.local)
    own = plan_part(
        *(query, key, value, _plan(pattern, query, key), tile, scaling),
        first=first,
        skip=skip,
        sinks=skip > 0,
        local=pattern.local,
        prior=prior,
        part=split,
    )
    if not split:
        return own[0]
    near = Band(length=pattern.length, query_len=pattern.query_len, width=min(pattern.local, pattern.length))
    plan = _plan(near, query, key)
    beside = plan_part(query, key, value, plan, tile, scaling, first=first, skip=skip, part=True)
    return merge([own, beside])[0].to(query.dtype)
