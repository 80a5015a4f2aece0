"""The operator `sa_patch::attend`: what compiled and exported models call for attention, and its gradients.

The operator runs the same code as an eager model; it gets the variant as text.
"""

import ast
from functools import lru_cache

import torch
from torch import Tensor

from sa_patch.errors import unknown
from sa_patch.forward import KINDS, Layer, attend, attend_sequences
from sa_patch.geometry import Geometry, decode, refuse_restarts
from sa_patch.variants import VARIANTS
from sa_patch.variants.base import Variant

# What the operator's queries are. CALL: those of a model's call, where a single one on a cache is a generated token.
# PROMPT: those of a prompt, even a single one on a cache. LAST: a sequence's last ones, for `sa_patch.attention`.
CALL, PROMPT, LAST = "call", "prompt", "last"


def run(query, key, value, codes, position_ids, variant, layer_idx, num_layers, first_head, kernel, scaling, phase):
    """What the operator computes; arguments and results as `operator`."""
    number, step = layer_idx.tolist() if layer_idx.dim() else (int(layer_idx), 0)
    new, layer = query.shape[2], Layer(variant, kernel, number, num_layers, first_head).at_step(step)
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


@lru_cache(maxsize=64)
def _variant(spec: str) -> Variant:
    """The variant that `Variant.spec` spells."""
    name, _, options = spec.partition(" ")
    if name not in VARIANTS:
        raise unknown("mode", name, VARIANTS)
    return VARIANTS[name](**ast.literal_eval(options))


@torch.library.custom_op("sa_patch::attend", mutates_args=(), tags=(torch.Tag.cudagraph_unsafe,))
def operator(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    codes: Tensor | None,
    position_ids: Tensor | None,
    spec: str,
    layer_idx: Tensor,
    num_layers: int,
    first_head: int,
    kernel: str,
    scaling: float,
    phase: str,
) -> tuple[Tensor, Tensor]:
    """One layer's attention, and how often it ran what.

    Args:
        query: [batch, heads, q, head_dim]; key, value: [batch, kv_heads, n, head_dim].
        codes: see `geometry.encode`; None where every column is a real token of one sequence per row.
        spec: see `Variant.spec`.
        layer_idx: int64 [] in CPU memory; [2] for permutations of a training step: the layer's number and the step.
        first_head: see `Layer`.

    Returns:
        ([batch, heads, q, head_dim], int64 [len(KINDS)])
    """
    settings = num_layers, first_head, kernel, scaling, phase
    return run(query, key, value, codes, position_ids, _variant(spec), layer_idx, *settings)


@operator.register_fake
def _(query: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    output = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    return output, torch.empty(len(KINDS), dtype=torch.int64, device=query.device)


# Not a `custom_op`, because autograd records nothing inside one.
_LIBRARY = torch.library.Library("sa_patch", "FRAGMENT")
_LIBRARY.define(
    "attend_backward(Tensor grad, Tensor query, Tensor key, Tensor value, Tensor? codes, Tensor layer_idx, str spec, "
    "SymInt num_layers, SymInt first_head, str kernel, float scaling, str phase) -> (Tensor, Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag, torch.Tag.cudagraph_unsafe),
)


@torch.library.impl(_LIBRARY, "attend_backward", "CompositeExplicitAutograd")
def _operator_backward(grad, query, key, value, codes, layer_idx, spec, *settings) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values: the attention is computed again, with autograd."""
    query, key, value = (tensor.detach().requires_grad_() for tensor in (query, key, value))
    with torch.enable_grad():
        output, _ = run(query, key, value, codes, None, _variant(spec), layer_idx, *settings)
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


operator.register_autograd(_backward, setup_context=_keep)
