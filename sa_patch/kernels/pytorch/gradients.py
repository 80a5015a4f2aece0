"""Bands and blocks with gradients in O(n) memory: a chunk of tiles at a time is computed again.

With the log-sum-exp of all scores, every set of keys contributes to the gradients by itself. Belongs to the `torch`
kernel.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sa_patch.kernels.merging import Part, wide
from sa_patch.kernels.pytorch.disjoint import add_gradients, attention
from sa_patch.kernels.pytorch.parts import Record
from sa_patch.patterns import Band, Blocks, Pieces


@dataclass(frozen=True, eq=False)
class Disjoint:
    """`disjoint.attention`, differentiable: see `recorded.Differentiable`."""

    pattern: Band | Blocks | Pieces
    scaling: float
    kernel = "torch"

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Part:
        # PyTorch's CPU operator tells the log-sum-exp; elsewhere it costs less to compute it again where it can be.
        with_lse = query.device.type == "cpu"
        output, lse = attention(query, key, value, self.pattern, self.scaling, with_lse=with_lse)
        return output.to(query.dtype), lse

    def gradients(
        self, grad: Tensor, query: Tensor, key: Tensor, value: Tensor, output: Tensor, lse: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        heads = query, key, value
        query_grad, key_grad, value_grad = (
            torch.zeros_like(x, dtype=wide(x), memory_format=torch.contiguous_format) for x in heads
        )
        record = Record(*heads, output, grad, lse, query_grad, key_grad, value_grad, self.scaling)
        add_gradients(record, self.pattern)
        return query_grad.to(query.dtype), key_grad.to(query.dtype), value_grad.to(query.dtype)
