"""Attention through PyTorch's own fused kernels: the part of every pattern that is not sparse.

Not a kernel by itself; kernels call it for dense patterns, dense layers, dense tails and masked tiles.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

_ROWS = 512  # queries per masked step when there are fewer queries than keys: bounds the mask at 512 x n


def fused(
    query: Tensor, key: Tensor, value: Tensor, scaling: float, mask: Tensor | None = None, causal=False
) -> Tensor:
    """`scaled_dot_product_attention` with grouped heads.

    Args:
        query: [batch, heads, q, head_dim]; key, value: [batch, kv_heads, n, head_dim].
        mask: bool, True where visible, or what is added to the scores; broadcastable to [batch, heads, q, n].
    """
    group = query.shape[1] // key.shape[1]
    if group > 1 and mask is not None and query.device.type != "cpu":
        # CUDA's fused kernels take a mask or grouped heads, not both, and would fall back to an n x n computation.
        key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
        group = 1
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=causal, scale=scaling, enable_gqa=group > 1
    )


def causal(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    """Causal attention whose queries are the last positions of the keys, O(n) memory.

    Args:
        query: [batch, heads, q, head_dim]; key, value: [batch, kv_heads, n, head_dim] with q <= n.

    Returns:
        [batch, heads, q, head_dim]
    """
    query_len, length = query.shape[2], key.shape[2]
    if query_len == length:
        return fused(query, key, value, scaling, causal=True)
    if query_len == 1:
        return fused(query, key, value, scaling)
    steps = []
    for start in range(0, query_len, _ROWS):
        rows = query[:, :, start : start + _ROWS]
        seen = length - query_len + start + rows.shape[2]
        position = torch.arange(seen - rows.shape[2], seen, device=query.device)
        mask = torch.arange(seen, device=query.device) <= position[:, None]
        steps.append(fused(rows, key[:, :, :seen], value[:, :, :seen], scaling, mask))
    return torch.cat(steps, dim=2)
