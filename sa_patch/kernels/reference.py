"""The specification: softmax in float64 over `pattern.visible()`. Slow, O(n^2), and right by inspection."""

import torch
from torch import Tensor

from sa_patch.patterns import Pattern


class Reference:
    masks = True
    joins = False

    def refusal(self, pattern: Pattern, query: Tensor, key: Tensor, value: Tensor) -> str | None:
        return None

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, pattern: Pattern, scaling: float) -> Tensor:
        group = query.shape[1] // key.shape[1]
        keys = key.double().repeat_interleave(group, dim=1)
        values = value.double().repeat_interleave(group, dim=1)
        scores = query.double() @ keys.transpose(-1, -2) * scaling
        scores = scores.masked_fill(~pattern.visible().to(query.device), -torch.inf)
        if pattern.weight:
            scores = scores + pattern.raised().to(query.device)
        return (scores.softmax(dim=-1) @ values).to(query.dtype)
