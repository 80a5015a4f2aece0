"""Attention to some of the keys and its log-sum-exp, which `merge` needs. Belongs to the `torch` kernel.

Differentiable, and computed in float32 at least.
"""

import torch
from torch import Tensor

from sa_patch.kernels.base import needs_gradients
from sa_patch.kernels.merging import wide

# Entries of a mask or of scores held at once: 8 MiB of float32, so that a chunk stays near the caches of a CPU.
CHUNK_ENTRIES = 1 << 21


def masked_part(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float
) -> tuple[Tensor, Tensor]:
    """Attention of tiles of queries to tiles of keys: every tile is computed by itself.

    Args:
        query: [tiles, heads, q, head_dim]; key, value: [tiles, kv_heads, k, head_dim].
        mask: bool, broadcastable to [tiles, 1, q, k], True where visible; None shows everything.

    Returns:
        (output [tiles, heads, q, head_dim], log-sum-exp [tiles, heads, q]) in float32, or float64 for such tensors; 0
        and -inf where a query sees nothing.
    """
    # PyTorch's CPU flash kernel gives 0 for a single key that is NaN.
    if query.device.type == "cpu" and not needs_gradients(query, key, value) and key.shape[2] > 1:
        return _masked_part_on_cpu(query, key, value, mask, scaling)
    exact = wide(query)
    grouped = query.unflatten(1, (key.shape[1], -1)).to(exact)
    scores = grouped @ key[:, :, None].to(exact).transpose(-1, -2) * scaling
    if mask is not None:
        scores = scores.masked_fill(~mask.unsqueeze(-3), -torch.inf)
    lse = scores.logsumexp(dim=-1)
    # A row without keys has lse -inf: subtracting 0 instead keeps its weights at exp(-inf) = 0, with zero gradient.
    weights = (scores - lse.masked_fill(lse == -torch.inf, 0.0)[..., None]).exp()
    return (weights @ value[:, :, None].to(exact)).flatten(1, 2), lse.flatten(1, 2)


def _masked_part_on_cpu(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float):
    """`masked_part` without gradients, through PyTorch's flash attention operator for CPUs.

    The public `scaled_dot_product_attention` calls the same operator, but does not return its log-sum-exp.
    """
    if mask is not None:
        bias = torch.zeros(mask.shape, dtype=query.dtype).masked_fill_(~mask, -torch.inf)
        bias = bias.expand(query.shape[0], 1, query.shape[2], key.shape[2])
    else:
        bias = None
    # The operator reads head_dim as if it were contiguous; the public function makes sure that it is.
    query, key, value = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, key, value))
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    output, lse = flash(query, key, value, 0.0, False, attn_mask=bias, scale=scaling)
    lse = lse.to(wide(query))
    return output.to(lse.dtype), lse if mask is None else lse.masked_fill(~mask.any(dim=-1), -torch.inf)


def sinks_part(query: Tensor, key: Tensor, value: Tensor, sinks: int, scaling: float) -> tuple[Tensor, Tensor]:
    """Causal attention of every query to the first `sinks` keys; the queries are the last positions of the keys.

    Args:
        query: [batch, heads, q, head_dim]; key, value: [batch, kv_heads, n, head_dim].

    Returns:
        (output [batch, heads, q, head_dim], log-sum-exp [batch, heads, q])
    """
    query_len, length = query.shape[2], key.shape[2]
    row = torch.arange(query_len, device=query.device)
    near = key[:, :, :sinks], value[:, :, :sinks]
    column = torch.arange(min(sinks, length), device=query.device)
    step = max(1, CHUNK_ENTRIES // (query.shape[0] * query.shape[1] * sinks))
    parts = [
        masked_part(query[:, :, rows], *near, column <= (rows + length - query_len)[:, None], scaling)
        for rows in row.split(step)
    ]
    output, lse = (torch.cat(pieces, dim=2) for pieces in zip(*parts, strict=True))
    return output, lse
