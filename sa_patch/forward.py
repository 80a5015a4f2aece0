"""What one layer does with one call: sparse or dense, which pattern, which kernel, and counting it.

Imports torch only.
"""

from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sa_patch import kernels
from sa_patch.budget import LayerBudget
from sa_patch.geometry import Geometry, Group
from sa_patch.kernels.dense import causal, fused
from sa_patch.patterns import triangle
from sa_patch.variants.base import Variant


@dataclass(eq=False)
class Layer:
    """What one attention layer runs, and how often it did."""

    variant: Variant
    kernel: str
    layer_idx: int
    num_layers: int
    calls: Counter = field(default_factory=Counter)


def is_dense(variant: Variant, length: int, layer_idx: int, num_layers: int, device: torch.device) -> bool:
    """True where a variant's options leave full attention: a dense layer or a short prompt."""
    if variant.always_dense or layer_idx in variant.dense_layers or layer_idx - num_layers in variant.dense_layers:
        return True
    if variant.dense_below == "crossover":
        layout = "merged" if variant.sinks or variant.local else variant.layout
        return length <= kernels.crossover(layout, variant.window_at(length), device)
    return length <= int(variant.dense_below)


def layer_budget(variant: Variant, length: int, layer_idx: int, num_layers: int, device: torch.device) -> LayerBudget:
    """The budget of one layer, with dense layers and short prompts counted as what they are."""
    if is_dense(variant, length, layer_idx, num_layers, device):
        return LayerBudget(layer_idx, "dense", triangle(length))
    return variant.sparse_budget(length, layer_idx)


def attend(query: Tensor, key: Tensor, value: Tensor, geometry: Geometry, layer: Layer, scaling: float) -> Tensor:
    """One layer's attention in one call of the model: a whole prompt, or new tokens against a cache.

    Args:
        query: [batch, heads, q, head_dim]; key, value: [batch, kv_heads, n, head_dim]; padding included.

    Returns:
        [batch, heads, q, head_dim]; padded positions hold zeros or anything finite.

    Raises:
        NotImplementedError: for several new tokens at once where the variant doesn't define them.
    """
    new, length = geometry.columns.query_len, geometry.columns.length
    if new == 1 < length:
        layer.calls["decode"] += 1
        mask = None if geometry.key_mask is None else geometry.key_mask[:, None, None]
        return fused(query, key, value, scaling, mask)
    if new < length and not layer.variant.continues:
        raise NotImplementedError(
            f"{new} new tokens after {length - new} cached ones (chunked prefill, a further turn, assisted decoding): "
            f"mode {layer.variant.name!r} needs the whole prompt in one call. Pass the full text without "
            "past_key_values, or restore the patch for this call"
        )
    return attend_rows(query, key, value, geometry, layer, scaling)


def attend_rows(query: Tensor, key: Tensor, value: Tensor, geometry: Geometry, layer: Layer, scaling: float) -> Tensor:
    """The variant's attention of every row, as if padding did not exist; padded positions give zeros."""
    kind = query.device.type
    if torch.is_autocast_enabled(kind):
        # As PyTorch's own attention does under autocast; inside, nothing may change dtypes behind a kernel.
        query, key, value = (tensor.to(torch.get_autocast_dtype(kind)) for tensor in (query, key, value))
        with torch.autocast(kind, enabled=False):
            return attend_rows(query, key, value, geometry, layer, scaling)
    if geometry.parts is None:
        return attend_group(query, key, value, geometry.columns, layer, scaling)
    output = torch.zeros_like(query)
    for part in geometry.parts:
        keys, values = part.gather(key, part.key_index), part.gather(value, part.key_index)
        queries = part.gather(query, part.query_index)
        part.scatter(output, attend_group(queries, keys, values, part.group, layer, scaling))
    return output


def attend_group(query: Tensor, key: Tensor, value: Tensor, group: Group, layer: Layer, scaling: float) -> Tensor:
    """Attention of equally long, unpadded rows.

    Args:
        query: [rows, heads, query_len, head_dim]; key, value: [rows, kv_heads, length, head_dim].

    Returns:
        [rows, heads, query_len, head_dim]
    """
    variant = layer.variant
    if is_dense(variant, group.length, layer.layer_idx, layer.num_layers, group.device):
        layer.calls["dense_prefill"] += 1
        return causal(query, key, value, scaling)
    layer.calls["sparse_prefill"] += 1
    pattern = variant.sparse_pattern(group, layer.layer_idx, query, key)
    return kernels.select(layer.kernel, pattern, query, key)(query, key, value, pattern, scaling)
