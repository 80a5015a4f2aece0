"""Attention while torch.compile or torch.export traces: one call of `sa_patch::attend`, which they don't look into.

Which keys a query sees depends on values (padding, documents, routing), which a compiler can't trace. Only generated
tokens that read the whole cache are plain PyTorch operations, because those need no values. Importing this module
imports the compiler, which takes two seconds.
"""

import torch
from torch import Tensor

from sa_patch.forward import KINDS, Layer
from sa_patch.geometry import REAL, Geometry, encode
from sa_patch.kernels.dense import fused
from sa_patch.operator import CALL, LAST, PROMPT, operator, run
from sa_patch.variants import VARIANTS
from sa_patch.variants.base import Variant

_OWN = (
    "a variant that is not in sa_patch.VARIANTS can't be named in a compiled graph: add its class there, "
    "compile without fullgraph=True (its attention then runs outside the graph), or don't compile"
)


def trace_layer(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Geometry | Tensor,
    position_ids: Tensor | None,
    layer: Layer,
    scaling: float,
    *,
    prompt: bool,
    step: Tensor | None = None,
) -> Tensor:
    """`forward.attend` while a compiler traces; values are looked at when the graph runs.

    Args:
        mask: from the mask factory: a Geometry where layers of an eager model are compiled, else a traced tensor.
        position_ids: [batch or 1, q], to refuse packed documents that transformers did not separate.
        step: the training step whose permutations are taken, int64 [] in CPU memory.
    """
    query, key, value = _cast(query, key, value)
    codes = _encoded(mask, query, key)
    if not torch.compiler.is_compiling():
        # FakeTensorMode takes no tensor made outside it. What other tracers record does not count for the patch.
        layer_idx = torch.full((), layer.layer_idx, dtype=torch.int64, device="cpu")
        place = _place(layer_idx, step), layer.num_layers, layer.first_head
        settings = *place, layer.kernel, scaling, PROMPT if prompt else CALL
        return _call(query, key, value, codes, position_ids, layer.variant, *settings)[0]
    traced = layer.traced
    if traced.calls.device != query.device:  # the model was moved
        traced.calls = traced.calls.to(query.device)
    if query.shape[2] == 1 and key.shape[2] > 1 and layer.variant.decode == "full" and not prompt:
        traced.calls[KINDS.index("full_decode")].add_(1)
        return fused(query, key, value, scaling, None if codes is None else (codes & REAL).bool())
    place = _place(traced.layer_idx, step), layer.num_layers, layer.first_head
    settings = *place, layer.kernel, scaling, PROMPT if prompt else CALL
    output, calls = _call(query, key, value, codes, position_ids, layer.variant, *settings)
    traced.calls.add_(calls)
    return output


def trace_function(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    variant: Variant,
    layer_idx: int,
    num_layers: int,
    kernel: str,
    scaling: float,
) -> Tensor:
    """`sa_patch.attention` while a compiler traces.

    Args:
        mask: bool [batch, length], True at real tokens, or None.
    """
    batch, new, length = query.shape[0], query.shape[2], key.shape[2]
    Geometry.check_mask(mask, batch, length)
    codes = None if mask is None else encode(batch, new, length, length - new, mask, None, query.device)
    query, key, value = _cast(query, key, value)
    number = torch.full((), layer_idx, dtype=torch.int64, device="cpu")
    return _call(query, key, value, codes, None, variant, number, num_layers, 0, kernel, scaling, LAST)[0]


def _place(layer_idx: Tensor, step: Tensor | None) -> Tensor:
    return layer_idx if step is None else torch.stack([layer_idx, step])


def _encoded(mask: Geometry | Tensor, query: Tensor, key: Tensor) -> Tensor | None:
    """The geometry as a tensor; None where all columns are real tokens of one sequence per row."""
    if isinstance(mask, Tensor):
        return mask
    if mask.key_mask is None and mask.documents is None:
        return None
    batch, new, length = query.shape[0], query.shape[2], key.shape[2]
    return encode(batch, new, length, length - new, mask.key_mask, mask.documents, query.device)


def _cast(*tensors: Tensor) -> list[Tensor]:
    """To autocast's dtype, as `forward.attend_sequences` does: when the operator runs, autocast is no longer on."""
    kind = tensors[0].device.type
    if kind == "meta" or not torch.is_autocast_enabled(kind):  # autocast doesn't know the meta device
        return list(tensors)
    return [tensor.to(torch.get_autocast_dtype(kind)) for tensor in tensors]


def _call(query, key, value, codes, position_ids, variant: Variant, *settings) -> tuple[Tensor, Tensor]:
    if VARIANTS.get(variant.name) is type(variant):
        return operator(query, key, value, codes, position_ids, variant.spec, *settings)
    return _outside(query, key, value, codes, position_ids, variant, *settings)


@torch.compiler.disable(reason=_OWN)
def _outside(*arguments) -> tuple[Tensor, Tensor]:
    return run(*arguments)
