"""The mask factory: what transformers calls to build the attention mask of a forward.

transformers calls it once per kind of mask and forward, and hands what it returns to the layers of that kind unchanged.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import and_masks, causal_mask_function

from sa_patch.geometry import Geometry, encode
from sa_patch.tracing import values_are_hidden

# The functions in transformers.masking_utils that the mask of packed documents is made of.
_PACKING = (
    "and_masks",
    "causal_mask_function",
    "packed_sequence_mask_function",
    "remap_positions_for_packed_sequence",
)
_AND_MASK = and_masks(causal_mask_function).__code__


@dataclass(frozen=True)
class Unsupported:
    """Stands for a mask that sa_patch can't honour; a layer that gets it raises its reason.

    Building such a mask is no error yet: Qwen2-MoE builds a sliding mask in every forward, and Llama 4 a chunked one,
    also where no layer has that kind of attention.
    """

    reason: str


def mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function=causal_mask_function,
    attention_mask: Geometry | Tensor | None = None,
    local_size: int | None = None,
    use_vmap: bool = False,
    device: torch.device | str = "cpu",
    **_: object,
) -> Geometry | Tensor | Unsupported:
    """The function registered with transformers' AttentionMaskInterface.

    A static cache and a traced model get a tensor instead of a Geometry, see `geometry.encode`. It has four dimensions,
    and transformers passes masks of four dimensions through where it meets them a second time.

    Args:
        q_offset: tokens in the cache; a tensor with a static cache.
        kv_offset: the position of the first key that the cache still holds.
        attention_mask: bool [batch, keys], True at real tokens; or what this function returned before, because
            `generate` builds the mask itself for a static cache.
        local_size: the window or chunk of sliding and chunked masks; None for causal ones.
        use_vmap: True where the model or the caller adds a mask function of its own.

    Raises:
        ValueError: for a call without tokens, or a mask with other columns than there are keys.
        NotImplementedError: for a cache that does not hold every token.
    """
    if isinstance(attention_mask, Geometry):
        return attention_mask
    if q_length == 0:
        raise ValueError("this call has no tokens: an empty prompt has no last token to go on from, pass at least one")
    reason = _refusal(mask_function, local_size, use_vmap)
    if reason:
        return Unsupported(reason)
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
    masked = attention_mask is not None or documents is not None
    if fixed or (masked and values_are_hidden(attention_mask, documents)):
        return encode(batch_size, q_length, kv_length, q_offset, attention_mask, documents, device)
    return Geometry.build(batch_size, q_length, kv_length, attention_mask, device, documents)


def _refusal(mask_function: Any, local_size: int | None, use_vmap: bool) -> str | None:
    """Why a mask is more than causal attention within documents, or None."""
    if use_vmap:
        return "the model or caller adds its own mask function, which sa_patch can't honour: restore the patch for it"
    if local_size is not None:
        return (
            f"this layer's own mask is a sliding window or chunks of {local_size} tokens, which sa_patch would "
            "replace: only layers with full attention can be patched, restore the patch"
        )
    if torch.compiler.is_compiling():
        known = mask_function is causal_mask_function or mask_function.__code__ is _AND_MASK
    else:
        known = _made_of(mask_function)[0] <= {f"{causal_mask_function.__module__}.{name}" for name in _PACKING}
    if known:
        return None
    return (
        "mask functions other than those of causal attention and packed documents are not supported by sa_patch: "
        "pass a 2D attention_mask [batch, tokens], or restore the patch"
    )


def _made_of(mask_function: Any) -> tuple[set[str], list[Tensor]]:
    """The names of the functions a mask function is made of, and the tensors its packing functions hold.

    transformers composes mask functions as closures, so what each holds is in its cells.
    """
    names: set[str] = set()
    held_by_packing = []
    pending = [mask_function]
    while pending:
        function = pending.pop()
        names.add(f"{function.__module__}.{function.__qualname__.split('.')[0]}")
        for cell in function.__closure__ or ():
            held = cell.cell_contents
            pending += [item for item in (held if isinstance(held, (tuple, list)) else [held]) if callable(item)]
            if function.__qualname__.startswith("packed_sequence_mask_function."):
                held_by_packing.append(held)
    return names, held_by_packing


def _documents(mask_function: Any) -> Tensor | None:
    """The document of every token, int64 [batch, tokens], where transformers found packed ones in position_ids."""
    documents = _made_of(mask_function)[1]
    return documents[0] if documents else None


def _traced_documents(mask_function: Any, batch: int, length: int, device: torch.device) -> Tensor | None:
    """`_documents` for torch.compile, which can't read the cells of a closure: call the mask function instead.

    A token that does not see the one before it starts a document. While compiling, transformers passes a packing mask
    function whenever there is neither a mask nor a cache, also for rows of one document.
    """
    if mask_function is causal_mask_function:
        return None
    row, column = torch.arange(batch, device=device)[:, None], torch.arange(length, device=device)
    sees_previous = mask_function(row, 0, column, (column - 1).clamp(min=0))
    return (~sees_previous).cumsum(dim=1)
