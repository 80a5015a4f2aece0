"""PyTorch's fused attention with the pattern as a mask: the fastest exact way while sequences are short.

It computes all query_len x length scores, and refuses once the mask is over `MAX_PAIRS` entries.
"""

from torch import Tensor

from sa_patch.kernels.dense import fused
from sa_patch.patterns import Pattern

MAX_PAIRS = 4096 * 4096


class Sdpa:
    masks = True
    joins = False

    def refusal(self, pattern: Pattern, query: Tensor, key: Tensor, value: Tensor) -> str | None:
        if pattern.query_len * pattern.length > MAX_PAIRS:
            return f"a {pattern.query_len} x {pattern.length} mask is over the limit of {MAX_PAIRS:,} entries"
        return None

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, pattern: Pattern, scaling: float) -> Tensor:
        return fused(query, key, value, scaling, pattern.visible().to(query.device))
