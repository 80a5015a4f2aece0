"""Merging attention over disjoint sets of keys into attention over their union, by log-sum-exp.

Differentiable, and computed in float32 at least.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

# A part is attention to some of the keys: (output [..., head_dim], log-sum-exp of its scores [...]). The log-sum-exp is
# None where a part is all there is, and needs no merging.
Part = tuple[Tensor, Tensor | None]


def wide(tensor: Tensor) -> torch.dtype:
    """The dtype of parts until they are merged: float32, or float64 for float64."""
    return torch.promote_types(tensor.dtype, torch.float32)


def merge(parts: Sequence[Part]) -> Part:
    """Attention to the union of the parts' keys. No key may be in two parts."""
    if len(parts) == 1:
        return parts[0]
    lse = torch.stack([part_lse for _, part_lse in parts if part_lse is not None])
    total = lse.logsumexp(dim=0)
    weights = (lse - total.masked_fill(total == -torch.inf, 0.0)).exp()
    merged = weights[0, ..., None] * parts[0][0]
    for weight, (output, _) in zip(weights[1:], parts[1:], strict=True):
        merged = torch.addcmul(merged, weight[..., None], output)
    return merged, total
