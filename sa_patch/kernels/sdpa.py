"""PyTorch's fused attention with the pattern as a mask: the fastest exact way while sequences are short.

Does all n^2 scores, so it refuses once the mask outgrows `MAX_PAIRS`.
"""

from torch import Tensor

from sa_patch.kernels.dense import causal, fused
from sa_patch.patterns import Pattern

MAX_PAIRS = 4096 * 4096


class Sdpa:
    name = "sdpa"

    def refusal(self, pattern: Pattern, query: Tensor, key: Tensor, value: Tensor) -> str | None:
        if not pattern.covers_all and pattern.query_len * pattern.length > MAX_PAIRS:
            return f"a {pattern.query_len} x {pattern.length} mask is over the limit of {MAX_PAIRS:,} entries"
        return None

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, pattern: Pattern, scaling: float) -> Tensor:
        if pattern.covers_all:
            return causal(query, key, value, scaling)
        return fused(query, key, value, scaling, pattern.visible().to(query.device))
