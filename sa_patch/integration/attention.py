"""The attention function that transformers calls in every layer, and the registration of both functions.

One name is registered for all models. Which variant and kernel a layer runs is stored on the layer's module, so models
can hold different patches.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from sa_patch.compiled import trace_layer
from sa_patch.forward import Layer, attend
from sa_patch.geometry import Geometry, decode, packed, refuse_restarts
from sa_patch.integration.gates import ARGUMENT, gated, step_of
from sa_patch.integration.masks import Unsupported, mask
from sa_patch.integration.state import NAME, UNPATCHED
from sa_patch.tracing import values_are_hidden

# Arguments of attention functions that change the result in ways no pattern expresses.
_FOREIGN = ("softcap", "s_aux", "position_bias", "cache")


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: object,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The function registered with transformers' AttentionInterface.

    Args:
        query: [batch, heads, q_len, head_dim], after position embedding.
        key, value: [batch, kv_heads, kv_len, head_dim], cached tokens included.
        attention_mask: what `masks.mask` returned in this forward.

    Returns:
        ([batch, q_len, heads, head_dim], None): transformers expects attention weights in the second place.

    Raises:
        RuntimeError: when the module carries no patch.
        NotImplementedError: for a call that the patch can't honour.
    """
    layer: Layer | None = module.__dict__.get("_sa_patch_layer")
    if layer is None:
        raise RuntimeError(UNPATCHED)
    _refuse_call(key, value, query, attention_mask, dropout, kwargs)
    layer.refuse_other_heads(key)
    assert isinstance(attention_mask, (Geometry, Tensor))
    factor = query.shape[-1] ** -0.5 if scaling is None else scaling
    patch = module.__dict__["_sa_patch"]
    prompt, hidden = patch.reads_prompt, values_are_hidden(query)
    position_ids, ends = kwargs.get("position_ids"), kwargs.get("cu_seq_lens_q")
    geometry = attention_mask
    if isinstance(geometry, Tensor):
        if not hidden and layer.layer_idx == 0 and query.shape[2] > 1:
            refuse_restarts(position_ids, decode(geometry, query.shape[2]))
    elif not hidden:
        geometry = geometry if ends is None else packed(geometry, ends)
        if layer.layer_idx == 0:
            refuse_restarts(position_ids, geometry)
            _refuse_other_ends(ends, kwargs.get("cu_seq_lens_k"))
            if not prompt and query.shape[2] == geometry.columns.length:  # generate's prompt may come in chunks
                patch.warn_if_short(geometry.columns.length)

    def run(one: Layer, step: Tensor | None = None) -> Tensor:
        if hidden:
            return trace_layer(query, key, value, geometry, position_ids, one, factor, prompt=prompt, step=step)
        one = one if step is None else one.at_step(int(step))
        return attend(query, key, value, geometry, one, factor, prompt=prompt)

    gates = kwargs.get(ARGUMENT)
    if gates is None:
        output = run(layer)
    else:
        step = step_of(module, patch.gates.steps, attention_mask, kwargs)
        output = gated(gates, [run(branch, step) for branch in layer.branches])
    if patch.observer is not None and not hidden and isinstance(geometry, Geometry):
        patch.observer(layer.layer_idx, query, key, value, factor)
    return output.transpose(1, 2).contiguous(), None


def _refuse_call(key: Tensor, value: Tensor, query: Tensor, mask: object, dropout: float, kwargs: Any) -> None:
    if isinstance(mask, Unsupported):
        raise NotImplementedError(mask.reason)
    if isinstance(mask, Geometry):
        length = mask.columns.length
    elif isinstance(mask, Tensor) and mask.dtype == torch.int32 and mask.shape[1:-1] == (1, 1):
        length = mask.shape[-1]
    else:
        raise NotImplementedError(
            f"sa_patch got a ready-made attention mask ({type(mask).__name__}"
            f"{list(mask.shape) if isinstance(mask, Tensor) else ''}): pass a 2D attention_mask [batch, tokens], or "
            "restore the patch"
        )
    if dropout:
        raise NotImplementedError(
            f"attention dropout {dropout} is not supported: call model.eval(), or train without it (load the model "
            "with attention_dropout=0.0; GPT-2 calls it attn_pdrop)"
        )
    if kwargs.get("output_attentions"):
        raise NotImplementedError("output_attentions=True is not supported: sparse kernels never hold the weights")
    foreign = [name for name in _FOREIGN if kwargs.get(name) is not None]
    if foreign:
        raise NotImplementedError(f"the model or caller passes {', '.join(foreign)}, which sa_patch can't honour")
    if key.shape != value.shape or query.shape[-1] != key.shape[-1]:
        raise NotImplementedError(f"keys {tuple(key.shape)} and values {tuple(value.shape)} must have one shape")
    if length > key.shape[2]:
        raise NotImplementedError(
            f"the cache gives a layer {key.shape[2]} keys where there should be {length}: it drops tokens (a sliding "
            "layer, a compressing cache). Use DynamicCache (generate's default) or StaticCache"
        )
    packs = kwargs.get("cu_seq_lens_q") is not None or kwargs.get("cu_seq_lens_k") is not None
    fits = query.shape[0] == 1 and query.shape[2] == key.shape[2] and isinstance(mask, Geometry)
    if packs and (not fits or values_are_hidden(query)):
        raise NotImplementedError(
            "cu_seq_lens_q packs documents into one row without a cache; this call has "
            f"{query.shape[0]} rows, {query.shape[2]} queries and {key.shape[2]} keys, or is compiled"
        )


def _refuse_other_ends(ends: Tensor | None, of_keys: Tensor | None) -> None:
    if of_keys is not ends and of_keys is not None and (ends is None or not torch.equal(ends, of_keys.to(ends))):
        raise NotImplementedError(
            f"cu_seq_lens_k={of_keys.tolist()} cuts the keys elsewhere than "
            f"cu_seq_lens_q={None if ends is None else ends.tolist()} cuts the queries: pass the same for both"
        )


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, mask)
