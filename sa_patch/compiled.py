"""Attention as one operator that torch.compile and torch.export don't look into.

Who sees whom is decided from values (padding, documents, routing), which a compiler can't trace. So a compiled model
calls `sa_patch::attend`, which runs the very code an eager model runs; the variant travels as text. Only generated
tokens that read the whole cache are plain PyTorch operations: nothing in them looks at a value. Imports torch only.
"""

import ast
from functools import lru_cache

import torch
from torch import Tensor

from sa_patch.errors import unknown
from sa_patch.forward import KINDS, Layer, attend, attend_rows
from sa_patch.geometry import REAL, Geometry, decode, encode, refuse_restarts
from sa_patch.kernels.dense import fused
from sa_patch.variants import VARIANTS
from sa_patch.variants.base import Variant

# What a call is to the operator: what its shapes say, part of a prompt in any case, or the last queries of a sequence.
CALL, PROMPT, LAST = "call", "prompt", "last"
_OWN = (
    "a variant that is not in sa_patch.VARIANTS can't be named in a compiled graph: add its class there, "
    "compile without fullgraph=True (its attention then runs outside the graph), or don't compile"
)


def attend_compiled(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Geometry | Tensor,
    position_ids: Tensor | None,
    layer: Layer,
    scaling: float,
    *,
    prompt: bool,
) -> Tensor:
    """`forward.attend` while a compiler traces: shapes and errors as there, but values are looked at when it runs.

    Args:
        mask: from the mask factory, traced like the rest or not (compiled layers of an eager model).
        position_ids: [batch or 1, q], to refuse documents that nobody separated.
    """
    query, key, value = _cast(query, key, value)
    codes, traced = _codes(mask, query, key), layer.traced
    if traced.calls.device != query.device:  # the model was moved
        traced.calls = traced.calls.to(query.device)
    if query.shape[2] == 1 and key.shape[2] > 1 and layer.variant.decode == "full" and not prompt:
        traced.calls[KINDS.index("full_decode")].add_(1)
        return fused(query, key, value, scaling, None if codes is None else (codes & REAL).bool())
    place = traced.place, layer.num_layers
    phase = PROMPT if prompt else CALL
    output, calls = _call(query, key, value, codes, position_ids, layer.variant, *place, layer.kernel, scaling, phase)
    traced.calls.add_(calls)
    return output


def attend_function(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    variant: Variant,
    place: tuple[int, int],
    kernel: str,
    scaling: float,
) -> Tensor:
    """`sa_patch.attention` while a compiler traces.

    Args:
        mask: bool [batch, length], True at real tokens, or None.
        place: layer_idx and num_layers.
    """
    batch, new, length = query.shape[0], query.shape[2], key.shape[2]
    Geometry.check_mask(mask, batch, length)
    codes = None if mask is None else encode(batch, new, length, length - new, mask, None, query.device)
    query, key, value = _cast(query, key, value)
    layer_idx = torch.full((), place[0], dtype=torch.int64, device="cpu")
    return _call(query, key, value, codes, None, variant, layer_idx, place[1], kernel, scaling, LAST)[0]


def _codes(mask: Geometry | Tensor, query: Tensor, key: Tensor) -> Tensor | None:
    """What the operator takes for a mask; None where all columns are real tokens of one sequence per row."""
    if isinstance(mask, Tensor):
        return mask
    if mask.key_mask is None and mask.documents is None:
        return None
    batch, new, length = query.shape[0], query.shape[2], key.shape[2]
    return encode(batch, new, length, length - new, mask.key_mask, mask.documents, query.device)


def _cast(*tensors: Tensor) -> list[Tensor]:
    """As `forward.attend_rows` does under autocast, which is no longer on when the operator runs."""
    kind = tensors[0].device.type
    if not torch.is_autocast_enabled(kind):
        return list(tensors)
    return [tensor.to(torch.get_autocast_dtype(kind)) for tensor in tensors]


def _call(query, key, value, codes, position_ids, variant: Variant, *settings) -> tuple[Tensor, Tensor]:
    if VARIANTS.get(variant.name) is type(variant):
        return _attend(query, key, value, codes, position_ids, variant.spec, *settings)
    return _outside(query, key, value, codes, position_ids, variant, *settings)


def _run(query, key, value, codes, position_ids, variant, layer_idx, num_layers, kernel, scaling, phase):
    """(output, how often the layer did what: int64 [len(KINDS)]); arguments as `_attend`."""
    new, layer = query.shape[2], Layer(variant, kernel, int(layer_idx), num_layers)
    if codes is None:
        geometry = Geometry.build(query.shape[0], new, key.shape[2], None, query.device)
    else:
        # A view: `decode` remembers with the tensor, but a compiled graph may write other codes into the same one.
        geometry = decode(codes.view_as(codes), new)
    if layer.layer_idx == 0:
        refuse_restarts(position_ids, geometry)
    if phase == LAST:
        output = attend_rows(query, key, value, geometry, layer, scaling)
    else:
        output = attend(query, key, value, geometry, layer, scaling, prompt=phase == PROMPT)
    return output.contiguous(), torch.tensor([layer.calls[kind] for kind in KINDS], device=query.device)


@torch.compiler.disable(reason=_OWN)
def _outside(*arguments) -> tuple[Tensor, Tensor]:
    return _run(*arguments)


@lru_cache(maxsize=64)
def _variant(spec: str) -> Variant:
    """The variant that `Variant.spec` spells."""
    name, _, options = spec.partition(" ")
    if name not in VARIANTS:
        raise unknown("mode", name, VARIANTS)
    return VARIANTS[name](**ast.literal_eval(options))


@torch.library.custom_op("sa_patch::attend", mutates_args=(), tags=(torch.Tag.cudagraph_unsafe,))
def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    codes: Tensor | None,
    position_ids: Tensor | None,
    spec: str,
    layer_idx: Tensor,
    num_layers: int,
    kernel: str,
    scaling: float,
    phase: str,
) -> tuple[Tensor, Tensor]:
    """One layer's attention and how often it did what.

    Args:
        query: [batch, heads, q, head_dim]; key, value: [batch, kv_heads, n, head_dim].
        codes: see `geometry.encode`; None where every column is a real token of one sequence per row.
        spec: see `Variant.spec`.
        layer_idx: int64 [], in CPU memory.

    Returns:
        ([batch, heads, q, head_dim], int64 [len(KINDS)])
    """
    return _run(query, key, value, codes, position_ids, _variant(spec), layer_idx, num_layers, kernel, scaling, phase)


@_attend.register_fake
def _(query: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    output = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    return output, torch.empty(len(KINDS), dtype=torch.int64, device=query.device)


# No `custom_op`: inside one, autograd records nothing.
_LIBRARY = torch.library.Library("sa_patch", "FRAGMENT")
_LIBRARY.define(
    "attend_backward(Tensor grad, Tensor query, Tensor key, Tensor value, Tensor? codes, Tensor layer_idx, str spec, "
    "SymInt num_layers, str kernel, float scaling, str phase) -> (Tensor, Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag, torch.Tag.cudagraph_unsafe),
)


@torch.library.impl(_LIBRARY, "attend_backward", "CompositeExplicitAutograd")
def _attend_backward(grad, query, key, value, codes, layer_idx, spec, *settings) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values: computes the attention again, and goes back through it."""
    query, key, value = (tensor.detach().requires_grad_() for tensor in (query, key, value))
    with torch.enable_grad():
        output, _ = _run(query, key, value, codes, None, _variant(spec), layer_idx, *settings)
    query_grad, key_grad, value_grad = torch.autograd.grad(output, (query, key, value), grad)
    return query_grad.contiguous(), key_grad.contiguous(), value_grad.contiguous()


@torch.library.register_fake("sa_patch::attend_backward", lib=_LIBRARY)
def _(grad: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(torch.empty(item.shape, dtype=item.dtype, device=item.device) for item in tensors[:3])


def _keep(ctx, inputs, output) -> None:
    query, key, value, codes, _, ctx.spec, layer_idx, *ctx.settings = inputs
    ctx.save_for_backward(query, key, value, codes, layer_idx)


def _backward(ctx, grad: Tensor, _) -> tuple[Tensor | None, ...]:
    gradients = torch.ops.sa_patch.attend_backward(grad, *ctx.saved_tensors, ctx.spec, *ctx.settings)
    return *gradients, *[None] * (4 + len(ctx.settings))


_attend.register_autograd(_backward, setup_context=_keep)
