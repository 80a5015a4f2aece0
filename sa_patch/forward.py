"""What one layer does with one call: sparse or dense, which pattern, which kernel, and counting it.

Imports torch only.
"""

from collections import Counter
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from sa_patch import kernels
from sa_patch.budget import LayerBudget
from sa_patch.counting import triangle
from sa_patch.geometry import REAL, Geometry, Group, decode
from sa_patch.kernels.dense import causal, fused
from sa_patch.variants.base import Variant

# What a layer did with the sequences of a call: its pattern, full attention because the pattern shows everything or the
# prompt is short, full attention because it is a dense layer; for one new token: the whole cache, or its pattern's row.
KINDS = ("sparse_prefill", "dense_short", "dense_layer", "full_decode", "sparse_decode")


@dataclass(eq=False)
class Layer:
    """What one attention layer runs, and how often it did."""

    variant: Variant
    kernel: str
    layer_idx: int
    num_layers: int
    calls: Counter = field(default_factory=Counter)

    @property
    def is_dense_layer(self) -> bool:
        """True where an option, or the variant, leaves this layer full."""
        variant = self.variant
        named = {self.layer_idx, self.layer_idx - self.num_layers}
        return variant.always_dense or not named.isdisjoint(variant.dense_layers)

    @cached_property
    def generating(self) -> Variant:
        """The variant for generated tokens: a dense tail is the prompt's."""
        return replace(self.variant, dense_tail=0) if self.variant.dense_tail else self.variant

    @cached_property
    def traced(self) -> "Traced":
        """What compiled models have in place of this object."""
        with torch.inference_mode(False):  # or nobody could write to it later
            calls = torch.zeros(len(KINDS), dtype=torch.int64, device="cpu")
            return Traced(torch.tensor(self.layer_idx, device="cpu"), calls)


@dataclass(eq=False)
class Traced:
    """A layer's number and counters as tensors: layers can share a compiled graph, and a graph can count.

    Attributes:
        place: int64 [], in CPU memory.
        calls: how often the layer did what, int64 [len(KINDS)].
    """

    place: Tensor
    calls: Tensor

    def to(self, device: torch.device) -> None:
        """Bring the counters to where the layer runs."""
        self.calls = self.calls.to(device)
        # CUDA graphs may write to it in place. No guard: layers that share a graph have their own.
        torch._dynamo.mark_static_address(self.calls, guard=False)


def is_short(variant: Variant, length: int, device: torch.device) -> bool:
    """True for sequences that `dense_below` leaves full."""
    if variant.dense_below == "crossover":
        layouts = [variant.layout, "merged"] if variant.sinks or variant.local else [variant.layout]
        return length <= max(kernels.crossover(layout, variant.window_at(length), device) for layout in layouts)
    return length <= int(variant.dense_below)


def is_dense(variant: Variant, length: int, layer_idx: int, num_layers: int, device: torch.device) -> bool:
    """True where a variant's options leave full attention: a dense layer or a short prompt."""
    return Layer(variant, "auto", layer_idx, num_layers).is_dense_layer or is_short(variant, length, device)


def layer_budget(variant: Variant, length: int, layer_idx: int, num_layers: int, device: torch.device) -> LayerBudget:
    """The budget of one layer, with dense layers and short prompts counted as what they are."""
    if is_dense(variant, length, layer_idx, num_layers, device):
        return LayerBudget(layer_idx, "dense", triangle(length))
    return variant.sparse_budget(length, layer_idx)


def attend(
    query: Tensor, key: Tensor, value: Tensor, geometry: Geometry, layer: Layer, scaling: float, *, prompt: bool
) -> Tensor:
    """One layer's attention in one call of the model: a prompt or a piece of it, or new tokens against a cache.

    Args:
        query: [batch, heads, q, head_dim]; key, value: [batch, kv_heads, n, head_dim]; padding included. Columns after
            the geometry's are those of a cache that is not full yet.
        prompt: the call belongs to a prompt even when it is a single token on a cache.

    Returns:
        [batch, heads, q, head_dim]; padded positions hold zeros or anything finite.

    Raises:
        NotImplementedError: for a piece of a prompt where the variant has to see the whole.
    """
    new, length = geometry.columns.query_len, geometry.columns.length
    key, value = key[:, :, :length], value[:, :, :length]
    generated = new == 1 < length and not prompt
    if generated and layer.variant.decode == "full":
        mask = None if geometry.key_mask is None else geometry.key_mask[:, None, None]
        return read_cache(query, key, value, mask, layer, scaling)
    if new < length and not generated:
        reason = layer.variant.whole_prompt_reason()
        if reason:
            raise NotImplementedError(
                f"{new} new tokens after {length - new} cached ones (chunked prefill, a further turn, assisted "
                f"decoding): {reason}. Or pass the full text without past_key_values, or restore the patch for this "
                "call"
            )
    return attend_rows(query, key, value, geometry, layer, scaling, generated=generated)


def read_cache(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, layer: Layer, scaling: float) -> Tensor:
    """One new token per row reads everything: query [batch, heads, 1, head_dim], mask bool [batch, 1, 1, n]."""
    layer.calls["full_decode"] += 1
    return fused(query, key, value, scaling, mask)


def attend_encoded(
    query: Tensor, key: Tensor, value: Tensor, codes: Tensor, layer: Layer, scaling: float, *, prompt: bool
) -> Tensor:
    """`attend` for a geometry that came as a tensor. Decoding with the whole cache never looks at its values."""
    if query.shape[2] == 1 and layer.variant.decode == "full" and not prompt:
        return read_cache(query, key, value, (codes & REAL).bool(), layer, scaling)
    return attend(query, key, value, decode(codes, query.shape[2]), layer, scaling, prompt=prompt)


def attend_rows(
    query: Tensor, key: Tensor, value: Tensor, geometry: Geometry, layer: Layer, scaling: float, *, generated=False
) -> Tensor:
    """The variant's attention of every sequence, as if padding did not exist; padded positions give zeros."""
    kind = query.device.type
    if torch.is_autocast_enabled(kind):
        # As PyTorch's own attention does under autocast; inside, nothing may change dtypes behind a kernel.
        query, key, value = (tensor.to(torch.get_autocast_dtype(kind)) for tensor in (query, key, value))
        with torch.autocast(kind, enabled=False):
            return attend_rows(query, key, value, geometry, layer, scaling, generated=generated)
    if geometry.parts is None:
        return attend_group(query, key, value, geometry.columns, layer, scaling, generated=generated)
    output = torch.zeros_like(query)
    for part in geometry.parts:
        keys, values = part.gather(key, part.key_index), part.gather(value, part.key_index)
        queries = part.gather(query, part.query_index)
        part.scatter(output, attend_group(queries, keys, values, part.group, layer, scaling, generated=generated))
    return output


def attend_group(
    query: Tensor, key: Tensor, value: Tensor, group: Group, layer: Layer, scaling: float, *, generated: bool
) -> Tensor:
    """Attention of equally long, unpadded sequences.

    Args:
        query: [sequences, heads, query_len, head_dim]; key, value: [sequences, kv_heads, length, head_dim].
        generated: the query is a token that was generated, no part of a prompt.

    Returns:
        [sequences, heads, query_len, head_dim]
    """
    variant = layer.generating if generated else layer.variant
    short = is_short(variant, group.length, group.device)
    if layer.is_dense_layer or short:
        pattern = variant.dense(group)
    else:
        pattern = variant.sparse_pattern(group, layer.layer_idx, query, key)
    dense = "full_decode" if generated else "dense_layer" if layer.is_dense_layer else "dense_short"
    sparse = "sparse_decode" if generated else "sparse_prefill"
    layer.calls[dense if pattern.covers_all else sparse] += 1
    if layer.is_dense_layer or short:
        return causal(query, key, value, scaling)
    return kernels.execute(layer.kernel, query, key, value, pattern, scaling)
