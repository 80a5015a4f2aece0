"""The `torch` kernel: every pattern in O(n w) with plain PyTorch operations, on any device, differentiable.

What a band or blocks show is split into disjoint sets of keys (own part, sinks, local window); attention to each is
computed, and merged.
"""

from torch import Tensor

from sa_patch.kernels.base import needs_gradients
from sa_patch.kernels.pytorch.disjoint import attention, joins
from sa_patch.kernels.pytorch.gradients import Disjoint
from sa_patch.kernels.pytorch.lines import lines
from sa_patch.kernels.pytorch.scattered import scattered
from sa_patch.kernels.pytorch.selected import selected
from sa_patch.kernels.recorded import record
from sa_patch.patterns import Band, Blocks, Lines, Pattern, Pieces, Scattered, Selected


class Torch:
    masks = False
    joins = True

    def refusal(self, pattern: Pattern, query: Tensor, key: Tensor, value: Tensor) -> str | None:
        if isinstance(pattern, Pieces) and joins(pattern):
            return None  # pieces are written, and their gradients added, to one tensor
        known = isinstance(pattern, (Band, Blocks, Lines, Scattered, Selected))
        return None if known else f"it has no code for {type(pattern).__name__} patterns"

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, pattern: Pattern, scaling: float) -> Tensor:
        if isinstance(pattern, Scattered):
            return scattered(query, key, value, pattern, scaling)
        if isinstance(pattern, Lines):
            return lines(query, key, value, pattern, scaling)
        if isinstance(pattern, Selected):
            return selected(query, key, value, pattern, scaling)
        assert isinstance(pattern, (Band, Blocks, Pieces)), "refusal() was not asked"
        if needs_gradients(query, key, value):
            return record(query, key, value, Disjoint(pattern, scaling))
        return attention(query, key, value, pattern, scaling, with_lse=False)[0].to(query.dtype)
