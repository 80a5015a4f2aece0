"""PyTorch's fused attention with the pattern as a mask: the fastest exact way while sequences are short.

It computes all query_len x length scores, and refuses once the mask is over `MAX_PAIRS` entries.
"""

import torch
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
        if pattern.weight and query.dtype.itemsize < 4:
            return f"its mask would hold the weights of sampled keys in {query.dtype}: use kernel='torch'"
        return None

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, pattern: Pattern, scaling: float) -> Tensor:
        mask = pattern.visible()
        if pattern.weight:
            mask = pattern.raised().masked_fill(~mask, -torch.inf).to(query.dtype)
        return fused(query, key, value, scaling, mask.to(query.device))
