"""The `torch` kernel: every pattern in O(n w) with plain PyTorch operations, on any device, differentiable.

Splits what a pattern shows into disjoint sets of keys (own part, sinks, local window), computes attention to each, and
merges them.
"""

from dataclasses import replace

from torch import Tensor

from sa_patch.kernels.merging import merge
from sa_patch.kernels.pytorch.bands import band_part
from sa_patch.kernels.pytorch.blocks import blocks_part
from sa_patch.kernels.pytorch.parts import sinks_part
from sa_patch.kernels.pytorch.scattered import scattered
from sa_patch.kernels.pytorch.selected import selected
from sa_patch.patterns import Band, Blocks, Pattern, Scattered, Selected


class Torch:
    masks = False
    joins = False

    def refusal(self, pattern: Pattern, query: Tensor, key: Tensor, value: Tensor) -> str | None:
        known = isinstance(pattern, (Band, Blocks, Scattered, Selected))
        return None if known else f"it has no code for {type(pattern).__name__} patterns"

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, pattern: Pattern, scaling: float) -> Tensor:
        if isinstance(pattern, Scattered):
            return scattered(query, key, value, pattern, scaling)
        if isinstance(pattern, Selected):
            return selected(query, key, value, pattern, scaling)
        assert isinstance(pattern, (Band, Blocks)), "refusal() was not asked"
        if isinstance(pattern, Band) and pattern.order is None and not pattern.circular:
            # A sliding window holds a local window that is no wider.
            pattern = replace(pattern, local=0) if pattern.local <= pattern.width else pattern
        split = pattern.sinks > 0 or pattern.local > 0
        if isinstance(pattern, Band):
            own = band_part(query, key, value, pattern, scaling, split=split)
        else:
            own = blocks_part(query, key, value, pattern, scaling, split=split)
        if not split:
            return own[0].to(query.dtype)
        parts = [own]
        if pattern.sinks:
            parts.append(sinks_part(query, key, value, pattern.sinks, scaling))
        if pattern.local:
            near = Band(length=pattern.length, query_len=pattern.query_len, sinks=pattern.sinks, width=pattern.local)
            parts.append(band_part(query, key, value, near, scaling, split=True))
        return merge(parts)[0].to(query.dtype)
