"""Attention as one operator, `sa_patch::attend`, which torch.compile and torch.export don't look into.

Which keys a query sees depends on values (padding, documents, routing), which a compiler can't trace. So a compiled
model calls an operator that runs the same code as an eager model; it gets the variant as text. Only generated tokens
that read the whole cache are plain PyTorch operations, because those need no values.
"""

import ast
from functools import lru_cache

import torch
from torch import Tensor

from sa_patch.errors import unknown
from sa_patch.forward import KINDS, Layer, attend, attend_sequences
from sa_patch.geometry import REAL, Geometry, decode, encode, refuse_restarts
from sa_patch.kernels.dense import fused
from sa_patch.variants import VARIANTS
from sa_patch.variants.base import Variant

# What the operator's queries are. CALL: those of a model's call, where a single one on a cache is a generated token.
# PROMPT: those of a prompt, even a single one on a cache. LAST: a sequence's last ones, for `sa_patch.attention`.
CALL, PROMPT, LAST = "call", "prompt", "last"
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
) -> Tensor:
    """`forward.attend` while a compiler traces; values are looked at when the graph runs.

    Args:
        mask: from the mask factory: a Geometry where layers of an eager model are compiled, else a traced tensor.
        position_ids: [batch or 1, q], to refuse packed documents that transformers did not separate.
    """
    query, key, value = _cast(query, key, value)
    codes = _encoded(mask, query, key)
    if not torch.compiler.is_compiling():
        # FakeTensorMode takes no tensor made outside it. What other tracers record does not count for the patch.
        layer_idx = torch.full((), layer.layer_idx, dtype=torch.int64, device="cpu")
        settings = layer_idx, layer.num_layers, layer.kernel, scaling, PROMPT if prompt else CALL
        return _call(query, key, value, codes, position_ids, layer.variant, *settings)[0]
    traced = layer.traced
    if traced.calls.device != query.device:  # the model was moved
        traced.calls = traced.calls.to(query.device)
    if query.shape[2] == 1 and key.shape[2] > 1 and layer.variant.decode == "full" and not prompt:
        traced.calls[KINDS.index("full_decode")].add_(1)
        return fused(query, key, value, scaling, None if codes is None else (codes & REAL).bool())
    settings = traced.layer_idx, layer.num_layers, layer.kernel, scaling, PROMPT if prompt else CALL
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
    return _call(query, key, value, codes, None, variant, number, num_layers, kernel, scaling, LAST)[0]


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
        return _operator(query, key, value, codes, position_ids, variant.spec, *settings)
    return _outside(query, key, value, codes, position_ids, variant, *settings)


def _run(query, key, value, codes, position_ids, variant, layer_idx, num_layers, kernel, scaling, phase):
    """What the operator computes; arguments and results as `_operator`."""
    new, layer = query.shape[2], Layer(variant, kernel, int(layer_idx), num_layers)
    if codes is None:
        geometry = Geometry.build(query.shape[0], new, key.shape[2], None, query.device)
    else:
        # A view, because `decode` keeps its result with the tensor, which a compiled graph may reuse for other codes.
        geometry = decode(codes.view_as(codes), new)
    if layer.layer_idx == 0:
        refuse_restarts(position_ids, geometry)
    if phase == LAST:
        output = attend_sequences(query, key, value, geometry, layer, scaling)
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
def _operator(
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
    """One layer's attention, and how often it ran what.

    Args:
        query: [batch, heads, q, head_dim]; key, value: [batch, kv_heads, n, head_dim].
        codes: see `geometry.encode`; None where every column is a real token of one sequence per row.
        spec: see `Variant.spec`.
        layer_idx: int64 [], in CPU memory.

    Returns:
        ([batch, heads, q, head_dim], int64 [len(KINDS)])
    """
    return _run(query, key, value, codes, position_ids, _variant(spec), layer_idx, num_layers, kernel, scaling, phase)


@_operator.register_fake
def _(query: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    output = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    return output, torch.empty(len(KINDS), dtype=torch.int64, device=query.device)


# Not a `custom_op`, because autograd records nothing inside one.
_LIBRARY = torch.library.Library("sa_patch", "FRAGMENT")
_LIBRARY.define(
    "attend_backward(Tensor grad, Tensor query, Tensor key, Tensor value, Tensor? codes, Tensor layer_idx, str spec, "
    "SymInt num_layers, str kernel, float scaling, str phase) -> (Tensor, Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag, torch.Tag.cudagraph_unsafe),
)


@torch.library.impl(_LIBRARY, "attend_backward", "CompositeExplicitAutograd")
def _operator_backward(grad, query, key, value, codes, layer_idx, spec, *settings) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values: the attention is computed again, with autograd."""
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


_operator.register_autograd(_backward, setup_context=_keep)
