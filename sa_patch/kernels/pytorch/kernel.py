"""The `torch` kernel: every pattern in O(n w) with plain PyTorch operations, on any device, differentiable.

Splits a pattern into disjoint key sets (own part, sinks, local window), attends to each, merges them, and replaces the
rows of the dense tail.
"""

from dataclasses import replace

import torch
from torch import Tensor

from sa_patch.kernels.dense import causal
from sa_patch.kernels.merging import Part, merge
from sa_patch.kernels.pytorch.bands import band_tiles
from sa_patch.kernels.pytorch.blocks import blocks_part
from sa_patch.kernels.pytorch.parts import sinks_part
from sa_patch.kernels.pytorch.scattered import scattered_rows
from sa_patch.kernels.pytorch.tiles import tiles_part
from sa_patch.patterns import Band, Blocks, Pattern, Scattered


class TorchTiled:
    name = "torch"

    def refusal(self, pattern: Pattern, query: Tensor, key: Tensor, value: Tensor) -> str | None:
        if pattern.covers_all:
            return None
        if not isinstance(pattern, (Band, Blocks, Scattered)):
            return f"it has no code for {type(pattern).__name__} patterns"
        return None

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, pattern: Pattern, scaling: float) -> Tensor:
        if pattern.covers_all:
            return causal(query, key, value, scaling)
        assert isinstance(pattern, (Band, Blocks, Scattered)), "refusal() was not asked"
        if isinstance(pattern, Scattered):
            output = scattered_rows(query, key, value, pattern, scaling)
        else:
            output = _sparse_rows(query, key, value, pattern, scaling)
        if pattern.tail:
            last = causal(query[:, :, -pattern.tail :], key, value, scaling)
            output = torch.cat([output[:, :, : -pattern.tail], last], dim=2)
        return output


def _sparse_rows(query: Tensor, key: Tensor, value: Tensor, pattern: Band | Blocks, scaling: float) -> Tensor:
    # A sliding window as wide as `local` contains it.
    if isinstance(pattern, Band) and pattern.order is None and not pattern.circular and pattern.local <= pattern.width:
        pattern = replace(pattern, local=0)
    split = pattern.sinks > 0 or pattern.local > 0
    if isinstance(pattern, Band):
        parts = [_band_part(query, key, value, pattern, scaling, part=split)]
    else:
        parts = [blocks_part(query, key, value, pattern, scaling, part=split)]
    if pattern.sinks:
        parts.append(sinks_part(query, key, value, pattern.sinks, scaling))
    if pattern.local:
        near = Band(length=pattern.length, query_len=pattern.query_len, sinks=pattern.sinks, width=pattern.local)
        parts.append(_band_part(query, key, value, near, scaling, part=True))
    return merge(parts)[0].to(query.dtype)


def _band_part(query: Tensor, key: Tensor, value: Tensor, band: Band, scaling: float, *, part: bool) -> Part:
    return tiles_part(query, key, value, band_tiles(band, query.device), band, scaling, part=part, exclude=part)
