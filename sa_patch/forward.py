"""What one layer does in one call of the model: full or sparse, which pattern, which kernel; and counting it."""

from collections import Counter
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily

from sa_patch import kernels
from sa_patch.budget import LayerBudget
from sa_patch.counting import triangle
from sa_patch.geometry import REAL, Geometry, Group, decode
from sa_patch.kernels.dense import causal, fused
from sa_patch.variants.base import Variant
from sa_patch.variants.gated import at_step

# What a layer did with sequences of equal length. In prompts: the pattern; full attention, because the pattern covers
# all or the prompt is short; full attention, as a dense layer. For a generated token: the whole cache; the pattern.
KINDS = ("sparse_prefill", "dense_short", "dense_layer", "full_decode", "sparse_decode")


@dataclass(eq=False)
class Layer:
    """What one attention layer runs, and how often it ran what.

    Attributes:
        first_head: the number of the first kv head that is here; another than 0 under tensor parallelism.
        kv_heads: how many there must be for that to be right; None where it does not matter.
    """

    variant: Variant
    kernel: str
    layer_idx: int
    num_layers: int
    first_head: int = 0
    kv_heads: int | None = None
    calls: Counter = field(default_factory=Counter)
    ran: Counter = field(default_factory=Counter)  # kernels by name, where the model is not compiled

    def refuse_other_heads(self, key: Tensor) -> None:
        """Refuse keys [batch, kv_heads, n, head_dim] of other heads than those that this layer was bound to."""
        if self.kv_heads is not None and key.shape[1] != self.kv_heads:
            raise NotImplementedError(
                f"what a head of {self.variant.name!r} sees depends here on its number or on the layer's other heads, "
                f"and layer {self.layer_idx} gets {key.shape[1]} kv heads where the model's weights hold "
                f"{self.kv_heads}: something splits it that the patch does not know. Use heads='shared', pool='head'"
            )

    @property
    def is_dense_layer(self) -> bool:
        """True where an option, or the variant, leaves this layer full."""
        variant = self.variant
        named = {self.layer_idx, self.layer_idx - self.num_layers}
        return variant.always_dense or not named.isdisjoint(variant.dense_layers)

    @cached_property
    def branches(self) -> tuple["Layer", ...]:
        """A layer for each branch of the variant. What ran is counted once, in this layer's counters."""
        same = self.kernel, self.layer_idx, self.num_layers, self.first_head
        made = [Layer(branch, *same) for branch in self.variant.branches]
        for branch in made:
            branch.ran = self.ran
        made[-1].calls = self.calls
        made[-1].__dict__["traced"] = self.traced
        return tuple(made)

    def at_step(self, step: int) -> "Layer":
        """The layer with the permutations of a training step, see `gated.at_step`; the same counters."""
        variant = at_step(self.variant, step)
        return self if variant is self.variant else replace(self, variant=variant)

    @cached_property
    def generating(self) -> Variant:
        """The variant for generated tokens: only the last queries of a prompt are a dense tail."""
        return replace(self.variant, dense_tail=0) if self.variant.dense_tail else self.variant

    @cached_property
    def traced(self) -> "Traced":
        """This layer's number and counters for compiled models."""
        # Ordinary tensors, also under inference_mode and FakeTensorMode: later calls write to them.
        with torch.inference_mode(False), unset_fake_temporarily():
            calls = torch.zeros(len(KINDS), dtype=torch.int64, device="cpu")
            return Traced(torch.tensor(self.layer_idx, device="cpu"), calls)


@dataclass(eq=False)
class Traced:
    """A layer's number and counters as tensors, so that layers can share a compiled graph and a graph can count.

    Attributes:
        layer_idx: int64 [], in CPU memory.
        calls: how often the layer ran what, int64 [len(KINDS)].
    """

    layer_idx: Tensor
    calls: Tensor

    def to(self, device: torch.device) -> None:
        """Move the counters to the layer's device."""
        self.calls = self.calls.to(device)
        # CUDA graphs may write to it in place. No guard, because each of the layers that share a graph has its own.
        torch._dynamo.mark_static_address(self.calls, guard=False)


def is_short(variant: Variant, length: int, device: torch.device, dtype: torch.dtype) -> bool:
    """True for sequences that `dense_below` leaves full."""
    if variant.dense_below == "crossover":
        layouts = [variant.layout, "merged"] if variant.sinks or variant.local else [variant.layout]
        return length <= max(kernels.crossover(layout, variant.window_at(length), device, dtype) for layout in layouts)
    return length <= int(variant.dense_below)


def is_dense(
    variant: Variant, length: int, layer_idx: int, num_layers: int, device: torch.device, dtype: torch.dtype
) -> bool:
    """True where a variant's options leave full attention: a dense layer or a short prompt."""
    return Layer(variant, "auto", layer_idx, num_layers).is_dense_layer or is_short(variant, length, device, dtype)


def layer_budget(
    variant: Variant,
    length: int,
    layer_idx: int,
    num_layers: int,
    device: torch.device,
    dtype: torch.dtype,
    kv_heads: int = 1,
) -> LayerBudget:
    """The budget of one layer, with dense layers and short prompts counted as what they are."""
    if is_dense(variant, length, layer_idx, num_layers, device, dtype):
        return LayerBudget(layer_idx, "dense", triangle(length))
    return variant.heads_budget(length, layer_idx, kv_heads)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    geometry: Geometry | Tensor,
    layer: Layer,
    scaling: float,
    *,
    prompt: bool,
) -> Tensor:
    """One layer's attention in one call of the model: a prompt or a piece of it, or a generated token on a cache.

    Args:
        query: [batch, heads, q, head_dim]; key, value: [batch, kv_heads, n, head_dim]; padding included. Columns after
            the geometry's are those of a cache that is not full yet.
        geometry: or what `geometry.encode` makes of it.
        prompt: the call belongs to a prompt even when it is a single token on a cache.

    Returns:
        [batch, heads, q, head_dim]; padded positions hold zeros or anything finite.

    Raises:
        NotImplementedError: for a piece of a prompt where the variant has to see the whole.
    """
    reads_cache = query.shape[2] == 1 and layer.variant.decode == "full" and not prompt
    if isinstance(geometry, Tensor):
        if reads_cache:  # without a look at the tensor's values, which would wait for the device
            return _read_cache(query, key, value, (geometry & REAL).bool(), layer, scaling)
        geometry = decode(geometry, query.shape[2])
    new, length = geometry.columns.query_len, geometry.columns.length
    key, value = key[:, :, :length], value[:, :, :length]
    generated = new == 1 < length and not prompt
    if generated and reads_cache:
        mask = None if geometry.key_mask is None else geometry.key_mask[:, None, None]
        return _read_cache(query, key, value, mask, layer, scaling)
    if new < length and not generated:
        reason = layer.variant.piece_reason(length - new)
        if reason:
            raise NotImplementedError(
                f"{new} new tokens after {length - new} cached ones (chunked prefill, a further turn, assisted "
                f"decoding): {reason}. Or pass the full text without past_key_values, or restore the patch for this "
                "call"
            )
    return attend_sequences(query, key, value, geometry, layer, scaling, generated=generated)


def _read_cache(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, layer: Layer, scaling: float) -> Tensor:
    """Full attention of one token per row: query [batch, heads, 1, head_dim], mask bool [batch, 1, 1, n]."""
    layer.calls["full_decode"] += 1
    return fused(query, key, value, scaling, mask)


def attend_sequences(
    query: Tensor, key: Tensor, value: Tensor, geometry: Geometry, layer: Layer, scaling: float, *, generated=False
) -> Tensor:
    """The layer's attention in every sequence of a call, as if padding did not exist.

    Args:
        generated: the query is a token that was generated, not one of a prompt.

    Returns:
        [batch, heads, q, head_dim]; 0 at padded positions.
    """
    kind = query.device.type
    if torch.is_autocast_enabled(kind):
        # As PyTorch's own attention does under autocast; inside, nothing may change dtypes behind a kernel.
        query, key, value = (tensor.to(torch.get_autocast_dtype(kind)) for tensor in (query, key, value))
        with torch.autocast(kind, enabled=False):
            return attend_sequences(query, key, value, geometry, layer, scaling, generated=generated)
    if geometry.parts is None:
        return _run_group(query, key, value, geometry.columns, layer, scaling, generated=generated)
    output = torch.zeros_like(query)
    for rows in geometry.parts:
        keys, values = rows.gather(key, rows.key_index), rows.gather(value, rows.key_index)
        queries = rows.gather(query, rows.query_index)
        rows.scatter(output, _run_group(queries, keys, values, rows.group, layer, scaling, generated=generated))
    return output


def _run_group(
    query: Tensor, key: Tensor, value: Tensor, group: Group, layer: Layer, scaling: float, *, generated: bool
) -> Tensor:
    """Attention in equally long, unpadded sequences, counted.

    Args:
        query: [sequences, heads, query_len, head_dim]; key, value: [sequences, kv_heads, length, head_dim].

    Returns:
        [sequences, heads, query_len, head_dim]
    """
    variant = layer.generating if generated else layer.variant
    dense = "full_decode" if generated else "dense_layer" if layer.is_dense_layer else "dense_short"
    if layer.is_dense_layer or is_short(variant, group.length, group.device, query.dtype):
        layer.calls[dense] += 1
        return causal(query, key, value, scaling)
    if layer.first_head:
        group = replace(group, first_head=layer.first_head)
    pattern = variant.sparse_pattern(group, layer.layer_idx, query, key)
    layer.calls[dense if pattern.covers_all else "sparse_decode" if generated else "sparse_prefill"] += 1
    return kernels.execute(layer.kernel, query, key, value, pattern, scaling, layer.ran)
