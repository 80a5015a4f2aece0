"""The `triton` kernel: every pattern in O(n w) on a GPU, one pass for window, band, ring, horizons and sinks.

Forward only. A local window beside a permuted pattern, and dense tails, are passes of their own.
"""

from dataclasses import replace
from functools import lru_cache
from importlib.util import find_spec

import torch
from torch import Tensor

from sa_patch.kernels.dense import causal
from sa_patch.kernels.partial import merge
from sa_patch.kernels.plan import make_plan, make_requests
from sa_patch.patterns import Band, Blocks, Pattern

# Tile sizes: not measured on a GPU yet. Tokens x heads of a group per tile, tiles per list, keys per step.
_TILE_ROWS, _TILES_PER_LIST, _KEYS = 128, 4, 64
_LARGEST_HEAD = 256


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
        if find_spec("triton") is None:
            return "Triton is not installed (pip install sa-patch[triton])"
        if query.device.type != "cuda" and not _interpreted():
            return f"it needs a GPU, the tensors are on {query.device.type!r}"
        if query.dtype == torch.bfloat16 and _interpreted():
            return "Triton's interpreter multiplies bfloat16 wrongly: use float16 or float32 there"
        if query.dim() == 4 and query.shape[-1] > _LARGEST_HEAD:
            return f"head_dim {query.shape[-1]} is over {_LARGEST_HEAD}"
        if query.dtype == torch.float64:
            return "it computes in float32: use kernel='torch' for float64"
        if query.dim() == 4 and query.shape[1] // key.shape[1] > _TILE_ROWS:
            return f"{query.shape[1]} query heads on {key.shape[1]} key heads are over {_TILE_ROWS} a group"
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, key, value)):
            return "it has no gradients: use kernel='torch', or torch.no_grad()"
        return None

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, pattern: Pattern, scaling: float) -> Tensor:
        if pattern.covers_all:
            return causal(query, key, value, scaling)
        assert isinstance(pattern, (Band, Blocks)), "refusal() was not asked"
        output = _sparse_rows(*(_dense_rows(tensor) for tensor in (query, key, value)), pattern, scaling)
        if pattern.tail:
            last = causal(query[:, :, -pattern.tail :], key, value, scaling)
            output = torch.cat([output[:, :, : -pattern.tail], last], dim=2)
        return output


def _dense_rows(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _sparse_rows(query: Tensor, key: Tensor, value: Tensor, pattern: Band | Blocks, scaling: float) -> Tensor:
    from sa_patch.kernels.triton_programs import attend_plan, attend_requests

    # A sliding window as wide as `local` contains it.
    if isinstance(pattern, Band) and pattern.order is None and pattern.local <= pattern.width:
        pattern = replace(pattern, local=0)
    kv_heads, first, skip = key.shape[1], pattern.first, pattern.sinks
    group = query.shape[1] // kv_heads
    rows = max(1, _TILE_ROWS // (1 << (group - 1).bit_length()))
    # A sliding window is in order already: longer lists would only hold more keys.
    per_list = 1 if isinstance(pattern, Band) and pattern.order is None else _TILES_PER_LIST
    plan = make_plan(pattern, rows, per_list, _KEYS, query.device)
    prior, split = None, pattern.local > 0
    if isinstance(pattern, Blocks) and pattern.selected is not None and pattern.selected.shape[-1]:
        requests = make_requests(pattern, kv_heads, _TILE_ROWS, _KEYS)
        prior = attend_requests(query, key, value, requests, scaling, first=first, skip=skip, local=pattern.local)
    own = attend_plan(
        *(query, key, value, plan, scaling),
        first=first,
        skip=skip,
        sinks=skip > 0,
        local=pattern.local,
        prior=prior,
        exact_output=split,
    )
    if not split:
        return own[0]
    near = Band(length=pattern.length, query_len=pattern.query_len, width=min(pattern.local, pattern.length))
    plan = make_plan(near, rows, 1, _KEYS, query.device)
    beside = attend_plan(query, key, value, plan, scaling, first=first, skip=skip, exact_output=True)
    return merge([own, beside])[0].to(query.dtype)
