"""The `triton` kernel: bands and blocks in O(n w) on a GPU, in one pass for the own part and the sinks.

Forward only. A local window beside a permuted pattern, and selected runs, are passes of their own.
"""

from dataclasses import replace
from functools import lru_cache
from importlib.util import find_spec

import torch
from torch import Tensor

from sa_patch.kernels.base import refusal_of_inference_only, refusal_without_code
from sa_patch.kernels.merging import merge
from sa_patch.kernels.requests import make_requests
from sa_patch.kernels.rules import choice_for
from sa_patch.kernels.triton.plans import Plan, kept_plan
from sa_patch.kernels.triton.tile_sizes import LARGEST_HEAD, Tile, candidates, tile_for, tiles_per_list
from sa_patch.patterns import Band, Blocks, Pattern


@lru_cache(maxsize=1)
def _installed() -> bool:
    return find_spec("triton") is not None


@lru_cache(maxsize=1)
def _interpreted() -> bool:
    from triton import knobs

    return bool(knobs.runtime.interpret)


class Triton:
    """Without a tile it takes what was measured for such tensors, or else the table's."""

    masks = False
    compile_seconds = 12.0  # of a program that is compiled for the first time

    def __init__(self, tile: Tile | None = None) -> None:
        self._tile = tile

    def candidates(self, head_dim: int, dtype: torch.dtype) -> list[tuple[int, ...]]:
        """Sizes that may be faster on some device, as `sized` takes them."""
        return candidates(head_dim, dtype == torch.float32)

    def sized(self, sizes: tuple[int, ...]) -> "Triton":
        """The kernel with these sizes."""
        return Triton(Tile(*sizes))

    def _tile_of(self, query: Tensor, key: Tensor) -> Tile:
        if self._tile is not None:
            return self._tile
        measured = choice_for(query, key).tiles.get("triton")
        return Tile(*measured) if measured else tile_for(query.shape[-1], query.dtype == torch.float32)

    def refusal(self, pattern: Pattern, query: Tensor, key: Tensor, value: Tensor) -> str | None:
        return (
            refusal_without_code(pattern, Band, Blocks)
            or _refusal_here(query, key)
            or refusal_of_inference_only(query, key, value)
            or self._refusal_of_heads(query, key)
        )

    def _refusal_of_heads(self, query: Tensor, key: Tensor) -> str | None:
        if query.dim() != 4:
            return None
        _, heads, _, head_dim = query.shape
        if head_dim > LARGEST_HEAD:
            return f"head_dim {head_dim} is over {LARGEST_HEAD}"
        rows, kv_heads = self._tile_of(query, key).rows, key.shape[1]
        if heads // kv_heads > rows:
            return f"{heads} query heads on {kv_heads} key heads are over {rows} a group"
        return None

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, pattern: Pattern, scaling: float) -> Tensor:
        from sa_patch.kernels.triton.launch import plan_part, requests_part

        assert isinstance(pattern, (Band, Blocks)), "refusal() was not asked"
        query, key, value = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, key, value))
        # A sliding window holds a local window that is no wider, and every pattern holds the query itself.
        contained = pattern.width if isinstance(pattern, Band) and pattern.order is None else 1
        if 0 < pattern.local <= contained:
            pattern = replace(pattern, local=0)
        if scaling <= 0:  # the programs take the largest product for the largest score
            query, scaling = (-query, -scaling) if scaling else (torch.zeros_like(query), 1.0)
        tile, first, skip = self._tile_of(query, key), pattern.first, pattern.sinks
        prior, split = None, pattern.local > 0
        if isinstance(pattern, Blocks) and pattern.selected is not None and pattern.selected.shape[-1]:
            requests = make_requests(pattern, key.shape[1], tile.rows)
            prior = requests_part(
                query, key, value, requests, tile, scaling, first=first, skip=skip, local=pattern.local
            )
        own = plan_part(
            *(query, key, value, _plan(pattern, query, key, tile), tile, scaling),
            first=first,
            skip=skip,
            sinks=skip > 0,
            local=pattern.local,
            prior=prior,
            with_lse=split,
        )
        if not split:
            return own[0]
        near = Band(length=pattern.length, query_len=pattern.query_len, width=min(pattern.local, pattern.length))
        plan = _plan(near, query, key, tile)
        beside = plan_part(query, key, value, plan, tile, scaling, first=first, skip=skip, with_lse=True)
        return merge([own, beside])[0].to(query.dtype)


def _refusal_here(query: Tensor, key: Tensor) -> str | None:
    """Why Triton can't compute with such tensors; None when it can."""
    if not _installed():
        return "Triton is not installed (pip install sa-patch[triton])"
    kind = query.device.type
    if kind != "cuda" and not _interpreted():
        return f"it needs a GPU, the tensors are on {kind!r}"
    if query.dtype == torch.bfloat16 and _interpreted():
        return "Triton's interpreter multiplies bfloat16 wrongly: use float16 or float32 there"
    return None


def _plan(pattern: Band | Blocks, query: Tensor, key: Tensor, tile: Tile) -> Plan:
    group = query.shape[1] // key.shape[1]
    rows = max(1, tile.rows // (1 << (group - 1).bit_length()))
    # The tiles of a sliding window gain nothing from a common list: its keys are in the order of positions already.
    tiles = tiles_per_list(pattern.width, rows) if isinstance(pattern, Band) and pattern.order is not None else 1
    return kept_plan(pattern, rows, tiles, query.device)
