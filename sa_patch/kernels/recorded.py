"""Attention whose backward pass is a kernel's own: what `torch` and `triton` give to autograd.

Kept between the passes are queries, keys, values, the output and the log-sum-exp of all scores.
"""

from typing import Any, Protocol

import torch
from torch import Tensor

from sa_patch.kernels.merging import Part


class Differentiable(Protocol):
    """Attention to the keys of one pattern, and its gradients.

    Attributes:
        kernel: its name.
    """

    kernel: str

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Part:
        """Output in query's dtype, and the log-sum-exp that `gradients` gets."""
        ...

    def gradients(
        self, grad: Tensor, query: Tensor, key: Tensor, value: Tensor, output: Tensor, lse: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of query, key and value from that of the output."""
        ...


def record(query: Tensor, key: Tensor, value: Tensor, attention: Differentiable) -> Tensor:
    """The attention's output, for autograd."""
    return _Attention.apply(query, key, value, attention)[0]


class _Attention(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(query: Tensor, key: Tensor, value: Tensor, attention: Differentiable) -> Part:
        return attention.attend(query, key, value)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Part) -> None:
        *heads, ctx.attention = inputs
        ctx.save_for_backward(*heads, *output)
        if output[1] is not None:
            ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        return *_Gradients.apply(grad_outputs[0], *ctx.saved_tensors, ctx.attention), None


class _Gradients(torch.autograd.Function):
    """The backward pass: a function of its own, so that whoever differentiates it is told."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        grad: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        output: Tensor,
        lse: Tensor | None,
        attention: Differentiable,
    ) -> tuple[Tensor, Tensor, Tensor]:
        # The dtypes are those of the forward pass, whatever is on where gradients are asked for.
        with torch.autocast(query.device.type, enabled=False):
            return attention.gradients(grad, query, key, value, output, lse)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        ctx.kernel = inputs[-1].kernel

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        raise NotImplementedError(
            f"kernel {ctx.kernel!r} has no second derivatives: use kernel='reference' (O(n^2) memory)"
        )
