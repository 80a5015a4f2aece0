"""The two functions transformers calls, registered under one name: the mask factory and the attention function.

Which variant and kernel a layer runs is bound to the module, so that models differ freely.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import and_masks, causal_mask_function

from sa_patch.compiled import trace_layer
from sa_patch.forward import Layer, attend
from sa_patch.geometry import Geometry, decode, encode, packed, refuse_restarts
from sa_patch.integration.state import NAME

# Arguments of attention functions that change the result in ways no pattern expresses.
_FOREIGN = ("softcap", "s_aux", "position_bias", "cache")
# What transformers builds the mask of packed documents from.
_PACKING = (
    "and_masks",
    "causal_mask_function",
    "packed_sequence_mask_function",
    "remap_positions_for_packed_sequence",
)
_AND_MASK = and_masks(causal_mask_function).__code__


def _mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function=causal_mask_function,
    attention_mask: Geometry | Tensor | None = None,
    use_vmap: bool = False,
    device: torch.device | str = "cpu",
    **_: object,
) -> Geometry | Tensor:
    """transformers' mask factory: called once per forward, what it returns reaches every layer unchanged.

    A static cache and a compiled model get a tensor (`geometry.encode`): shapes that never change, values nobody reads
    on the way. Being 4D, transformers hands it through where it comes by a second time.
    """
    if isinstance(attention_mask, Geometry):  # generate made it for a static cache that the prompt fills
        return attention_mask
    if q_length == 0:
        raise ValueError("this call has no tokens: an empty prompt has no last token to go on from, pass at least one")
    if use_vmap:
        raise NotImplementedError(
            "the model or caller adds its own mask function, which sa_patch can't honour: restore the patch for it"
        )
    device = torch.device(device)
    if torch.compiler.is_compiling():
        documents = _traced_documents(mask_function, batch_size, kv_length, device)
    else:
        documents = _documents(mask_function)
    fixed = isinstance(q_offset, Tensor) or kv_length > q_offset + q_length
    if kv_offset or not (fixed or kv_length == q_offset + q_length):
        raise NotImplementedError(
            f"this cache shows {kv_length} keys from {kv_offset} on for {q_offset} cached and {q_length} new tokens: "
            "it is too short, or drops tokens (a sliding cache). Use DynamicCache (generate's default), or a "
            "StaticCache that holds all tokens"
        )
    if fixed or (torch.compiler.is_compiling() and (attention_mask is not None or documents is not None)):
        return encode(batch_size, q_length, kv_length, q_offset, attention_mask, documents, device)
    return Geometry.build(batch_size, q_length, kv_length, attention_mask, device, documents)


def _documents(mask_function: Any) -> Tensor | None:
    """The document of every token, int64 [batch, tokens], where transformers found packed ones in position_ids.

    Raises:
        NotImplementedError: for mask functions that are more than causal attention within documents.
    """
    if mask_function is causal_mask_function:
        return None
    found, names = [], set()
    pending = [mask_function]
    while pending:
        function = pending.pop()
        names.add(f"{function.__module__}.{function.__qualname__.split('.')[0]}")
        for cell in function.__closure__ or ():
            held = cell.cell_contents
            pending += [item for item in (held if isinstance(held, (tuple, list)) else [held]) if callable(item)]
            if function.__qualname__.startswith("packed_sequence_mask_function."):
                found.append(held)
    known = {f"{causal_mask_function.__module__}.{name}" for name in _PACKING}
    if len(found) != 1 or names - known:
        raise NotImplementedError(
            f"mask functions made of {', '.join(sorted(names))} are not supported by sa_patch: pass a 2D "
            "attention_mask [batch, tokens], or restore the patch"
        )
    return found[0]


def _traced_documents(mask_function: Any, batch: int, length: int, device: torch.device) -> Tensor | None:
    """`_documents` while a compiler traces, which does not show what a function holds: ask it instead.

    Then transformers always separates documents, where there is neither a mask nor a cache.
    """
    if mask_function is causal_mask_function:
        return None
    if mask_function.__code__ is not _AND_MASK:
        raise NotImplementedError(
            "mask functions other than those of packed documents are not supported by sa_patch: pass a 2D "
            "attention_mask [batch, tokens], or restore the patch"
        )
    row, column = torch.arange(batch, device=device)[:, None], torch.arange(length, device=device)
    sees_previous = mask_function(row, 0, column, (column - 1).clamp(min=0))
    return (~sees_previous).cumsum(dim=1)


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
    """transformers' attention function: query [B, H, Q, D], key, value [B, Hkv, N, D] -> ([B, Q, H, D], None)."""
    layer: Layer | None = module.__dict__.get("_sa_patch_layer")
    if layer is None:
        raise RuntimeError(
            "this layer has no sa_patch layer bound: set attn_implementation through sa_patch.apply only"
        )
    _refuse_call(key, value, query, attention_mask, dropout, kwargs)
    factor = query.shape[-1] ** -0.5 if scaling is None else scaling
    prompt = module.__dict__["_sa_patch"].reads_prompt
    ends = kwargs.get("cu_seq_lens_q")
    if torch.compiler.is_compiling():
        assert isinstance(attention_mask, (Geometry, Tensor))
        position_ids = kwargs.get("position_ids")
        output = trace_layer(query, key, value, attention_mask, position_ids, layer, factor, prompt=prompt)
    elif isinstance(attention_mask, Tensor):
        if layer.layer_idx == 0 and query.shape[2] > 1:
            refuse_restarts(kwargs.get("position_ids"), decode(attention_mask, query.shape[2]))
        output = attend(query, key, value, attention_mask, layer, factor, prompt=prompt)
    else:
        assert isinstance(attention_mask, Geometry)
        geometry = attention_mask if ends is None else packed(attention_mask, ends)
        if layer.layer_idx == 0:
            refuse_restarts(kwargs.get("position_ids"), geometry)
            _refuse_other_ends(ends, kwargs.get("cu_seq_lens_k"))
        output = attend(query, key, value, geometry, layer, factor, prompt=prompt)
    return output.transpose(1, 2).contiguous(), None


def _refuse_call(key: Tensor, value: Tensor, query: Tensor, mask: object, dropout: float, kwargs: Any) -> None:
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
        raise NotImplementedError(f"attention dropout {dropout} is not supported: call model.eval(), or set it to 0")
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
    if packs and (not fits or torch.compiler.is_compiling()):
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
AttentionMaskInterface.register(NAME, _mask)
