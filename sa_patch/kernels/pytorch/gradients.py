"""Bands and blocks with gradients in O(n) memory. Belongs to the `torch` kernel.

Kept for the backward pass are queries, keys, values, the output and the log-sum-exp of all scores. With these, every
set of keys contributes to the gradients by itself, and a chunk of it at a time is computed again.
"""

from typing import Any

import torch
from torch import Tensor

from sa_patch.kernels.merging import wide
from sa_patch.kernels.pytorch.disjoint import attention, gradients
from sa_patch.kernels.pytorch.parts import Record
from sa_patch.patterns import Band, Blocks


class Recorded(torch.autograd.Function):
    """`disjoint.attention` for autograd."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        query: Tensor, key: Tensor, value: Tensor, pattern: Band | Blocks, scaling: float
    ) -> tuple[Tensor, Tensor | None]:
        # PyTorch's CPU operator tells the log-sum-exp; elsewhere it costs less to compute it again where it can be.
        output, lse = attention(query, key, value, pattern, scaling, with_lse=query.device.type == "cpu")
        return output.to(query.dtype), lse

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        *heads, ctx.pattern, ctx.scaling = inputs
        ctx.save_for_backward(*heads, *output)
        if output[1] is not None:
            ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        return *_Gradients.apply(grad, *ctx.saved_tensors, ctx.pattern, ctx.scaling), None, None


class _Gradients(torch.autograd.Function):
    """The backward pass of `Recorded`. A function of its own, so that whoever differentiates it is told."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        grad: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        output: Tensor,
        lse: Tensor | None,
        pattern: Band | Blocks,
        scaling: float,
    ) -> tuple[Tensor, ...]:
        sums = [torch.zeros_like(x, dtype=wide(x), memory_format=torch.contiguous_format) for x in (query, key, value)]
        # The dtypes are those of the forward pass, whatever is on where gradients are asked for.
        with torch.autocast(query.device.type, enabled=False):
            gradients(Record(query, key, value, output, grad, lse, *sums, scaling), pattern)
        return tuple(x.to(query.dtype) for x in sums)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *_: Any) -> tuple[Tensor | None, ...]:
        raise NotImplementedError("kernel 'torch' has no second derivatives: use kernel='reference' (O(n^2) memory)")
