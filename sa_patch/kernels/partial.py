"""Attention over part of the keys, with what is needed to merge parts: outputs and log-sum-exps.

Not a kernel by itself. Key sets that are merged must be disjoint. Everything is differentiable and computed in float32.
"""

import torch
from torch import Tensor

# Scores held at once, in entries: 32 MiB of float32, so that a chunk stays near the caches of a CPU.
CHUNK_ENTRIES = 1 << 23


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float) -> tuple[Tensor, Tensor]:
    """Attention of tiles of queries to tiles of keys.

    Args:
        query: [..., q, head_dim]; key, value: [..., k, head_dim].
        mask: bool, broadcastable to [..., q, k], True where visible; None shows everything.

    Returns:
        float32 (output [..., q, head_dim], log-sum-exp [..., q]); 0 and -inf where a query sees nothing.
    """
    scores = query.float() @ key.float().transpose(-1, -2) * scaling
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    lse = scores.logsumexp(dim=-1)
    # A row without keys has lse -inf: subtracting 0 instead keeps its weights at exp(-inf) = 0, with zero gradient.
    weights = (scores - lse.masked_fill(lse == -torch.inf, 0.0)[..., None]).exp()
    return weights @ value.float(), lse


def merge(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """One attention over the union of disjoint key sets, from (output [..., head_dim], log-sum-exp [...]) pairs."""
    if len(parts) == 1:
        return parts[0]
    lse = torch.stack([part_lse for _, part_lse in parts])
    total = lse.logsumexp(dim=0)
    weights = (lse - total.masked_fill(total == -torch.inf, 0.0)).exp()
    output = sum(weight[..., None] * part_output for weight, (part_output, _) in zip(weights, parts, strict=True))
    return output, total


def attend_sinks(query: Tensor, key: Tensor, value: Tensor, sinks: int, scaling: float) -> tuple[Tensor, Tensor]:
    """Every query to the first `sinks` keys, causally; queries and keys are whole sequences.

    Args:
        query: [batch, heads, n, head_dim]; key, value: [batch, kv_heads, n, head_dim].

    Returns:
        float32 (output [batch, heads, n, head_dim], log-sum-exp [batch, heads, n])
    """
    batch, heads, length, head_dim = query.shape
    kv_heads = key.shape[1]
    grouped = query.view(batch, kv_heads, heads // kv_heads, length, head_dim)
    near = key[:, :, None, :sinks], value[:, :, None, :sinks]
    position = torch.arange(length, device=query.device)
    rows = max(1, CHUNK_ENTRIES // (batch * heads * sinks))
    parts = [
        attend(grouped[..., step, :], *near, position[:sinks] <= position[step, None], scaling)
        for step in position.split(rows)
    ]
    output, lse = (torch.cat(pieces, dim=3) for pieces in zip(*parts, strict=True))
    return output.reshape(batch, heads, length, head_dim), lse.reshape(batch, heads, length)
