"""Merging attention over disjoint sets of keys into attention over their union, by log-sum-exp.

Differentiable, and computed in float32 at least.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

# A part is attention over some of the keys: (output [..., head_dim], log-sum-exp of its scores [...]). The latter is
# None where there is nothing to merge with.
Part = tuple[Tensor, Tensor | None]


def wide(tensor: Tensor) -> torch.dtype:
    """What parts are kept in until they are merged: float32, or float64 for float64."""
    return torch.promote_types(tensor.dtype, torch.float32)


def merge(parts: Sequence[Part]) -> Part:
    """One attention over the union of disjoint key sets, from (output [..., head_dim], log-sum-exp [...]) pairs."""
    if len(parts) == 1:
        return parts[0]
    lse = torch.stack([part_lse for _, part_lse in parts if part_lse is not None])
    total = lse.logsumexp(dim=0)
    weights = (lse - total.masked_fill(total == -torch.inf, 0.0)).exp()
    merged = weights[0, ..., None] * parts[0][0]
    for weight, (output, _) in zip(weights[1:], parts[1:], strict=True):
        merged = torch.addcmul(merged, weight[..., None], output)
    return merged, total
