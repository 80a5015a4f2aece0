"""What one layer does with one call: which pattern, which kernel, and counting it. Imports torch only."""

from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sa_patch import kernels
from sa_patch.geometry import Geometry, Group
from sa_patch.kernels.dense import causal, fused
from sa_patch.variants.base import Variant


@dataclass(eq=False)
class Layer:
    """What one attention layer runs, and how often it did."""

    variant: Variant
    kernel: str
    layer_idx: int
    num_layers: int
    calls: Counter = field(default_factory=Counter)


def attend_group(query: Tensor, key: Tensor, value: Tensor, group: Group, layer: Layer, scaling: float) -> Tensor:
    """Attention of equally long, unpadded rows.

    Args:
        query: [rows, heads, query_len, head_dim]; key, value: [rows, kv_heads, length, head_dim].

    Returns:
        [rows, heads, query_len, head_dim]
    """
    variant = layer.variant
    if variant.is_dense(group.length, layer.layer_idx, layer.num_layers, group.device):
        layer.calls["dense_prefill"] += 1
        return causal(query, key, value, scaling)
    layer.calls["sparse_prefill"] += 1
    pattern = variant.sparse_pattern(group, layer.layer_idx, query, key)
    return kernels.select(layer.kernel, pattern, query, key)(query, key, value, pattern, scaling)


def attend_prompt(
    query: Tensor, key: Tensor, value: Tensor, geometry: Geometry, layer: Layer, scaling: float
) -> Tensor:
    """A whole prompt per row, padding included; padded positions give zeros.

    Args:
        query: [batch, heads, n, head_dim]; key, value: [batch, kv_heads, n, head_dim].
    """
    if geometry.parts is None:
        return attend_group(query, key, value, geometry.columns, layer, scaling)
    output = torch.zeros_like(query)
    for part in geometry.parts:
        keys, values = part.gather(key, part.key_index), part.gather(value, part.key_index)
        queries = part.gather(query, part.query_index)
        part.scatter(output, attend_group(queries, keys, values, part.group, layer, scaling))
    return output


def attend_cached(
    query: Tensor, key: Tensor, value: Tensor, geometry: Geometry, layer: Layer, scaling: float
) -> Tensor:
    """New tokens against a cache: one generated token per row reads all its keys.

    Args:
        query: [batch, heads, q, head_dim]; key, value: [batch, kv_heads, n, head_dim] with q < n.

    Raises:
        NotImplementedError: for several new tokens at once, which only full attention defines here.
    """
    new = geometry.columns.query_len
    if new == 1:
        layer.calls["decode"] += 1
        mask = None if geometry.key_mask is None else geometry.key_mask[:, None, None]
        return fused(query, key, value, scaling, mask)
    if not layer.variant.continues:
        raise NotImplementedError(
            f"{new} new tokens after {geometry.columns.length - new} cached ones (chunked prefill, a further turn, "
            f"assisted decoding): mode {layer.variant.name!r} needs the whole prompt in one call. "
            "Pass the full text without past_key_values, or restore the patch for this call"
        )
    return attend_prompt(query, key, value, geometry, layer, scaling)
