"""Gradients of bands and blocks by Triton programs: O(n w) work, O(n) memory. Belongs to the `triton` kernel."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sa_patch.kernels.merging import Part
from sa_patch.kernels.triton.gradient_plans import keys_plan, listed_pattern, queries_plan, sinks_plan
from sa_patch.kernels.triton.gradient_programs import key_gradient_program, query_gradient_program
from sa_patch.kernels.triton.launch import LOG2_E, dim_for, launch, next_power_of_2
from sa_patch.kernels.triton.plans import FACTS, Plan
from sa_patch.kernels.triton.tile_sizes import Tile, backward_tile_for
from sa_patch.patterns import Band, Blocks


@dataclass(frozen=True, eq=False)
class Planned:
    """Attention of a pattern in one pass, and its gradients: see `recorded.Differentiable`.

    Attributes:
        forward: the forward pass with log-sum-exp, for (query, key, value).
        scaling: above 0.
    """

    pattern: Band | Blocks
    scaling: float
    forward: Callable[[Tensor, Tensor, Tensor], Part]
    kernel = "triton"

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Part:
        return self.forward(query, key, value)

    def gradients(
        self, grad: Tensor, query: Tensor, key: Tensor, value: Tensor, output: Tensor, lse: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        assert lse is not None
        heads = [x if x.stride(-1) == 1 else x.contiguous() for x in (query, key, value, grad)]
        statistics = lse * LOG2_E, (grad.float() * output.float()).sum(dim=-1)
        call = _Call(listed_pattern(self.pattern, query.device), self.scaling, heads, statistics)
        return call.query_grad(), *call.key_grads()


@dataclass(frozen=True, eq=False)
class _Call:
    """One backward pass.

    Attributes:
        heads: query, key, value and the output's gradient, head_dim contiguous.
        statistics: float32 [batch, heads, q]: the log-sum-exp in base 2, and the sum of output times its gradient.
    """

    pattern: Band | Blocks
    scaling: float
    heads: list[Tensor]
    statistics: tuple[Tensor, Tensor]

    @property
    def tile(self) -> Tile:
        query = self.heads[0]
        return backward_tile_for(query.shape[-1], query.dtype == torch.float32)

    @property
    def group(self) -> int:
        return self.heads[0].shape[1] // self.heads[1].shape[1]

    @property
    def tokens(self) -> int:
        """Queries per tile, each with all heads of a group."""
        return max(1, self.tile.rows // next_power_of_2(self.group))

    def query_grad(self) -> Tensor:
        query = self.heads[0]
        plan = queries_plan(self.pattern, self.tokens, self.tile.keys, query.device)
        found = torch.empty_like(query, memory_format=torch.contiguous_format)
        numbers = (query.shape[2], self.pattern.first, self.heads[1].shape[2], plan.opened)
        self._launch(query_gradient_program, plan, (found, *self.statistics), numbers, plan.opened > 0)
        return found

    def key_grads(self) -> tuple[Tensor, Tensor]:
        key, value = self.heads[1:3]
        plan = keys_plan(self.pattern, self.tile.keys, self.tokens, key.device)
        found = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in (key, value)]
        self._keys(plan, found, by_tile=False)
        if self.pattern.sinks:
            plan = sinks_plan(self.pattern, self.tile.keys, self.tokens, key.device)
            parts = [
                x.new_zeros(*x.shape[:2], plan.query_pos.numel(), x.shape[3], dtype=torch.float32) for x in (key, value)
            ]
            self._keys(plan, parts, by_tile=True)
            sinks = min(self.pattern.sinks, key.shape[2])
            together = -(-sinks // self.tile.keys) * self.tile.keys
            for grad, part in zip(found, parts, strict=True):
                total = part.unflatten(2, (-1, together)).sum(dim=2)[:, :, :sinks]
                grad[:, :, :sinks] = total.flip(2).to(grad.dtype)  # the last sink is the first one from the end
        return found[0], found[1]

    def _keys(self, plan: Plan, into: list[Tensor], *, by_tile: bool) -> None:
        numbers = (self.heads[0].shape[2], self.pattern.first, self.heads[1].shape[2], into[0].shape[2])
        self._launch(key_gradient_program, plan, (into[0], *self.statistics, into[1]), numbers, by_tile)

    def _launch(
        self, program: object, plan: Plan, tensors: tuple[Tensor, ...], numbers: tuple[int, ...], last: bool
    ) -> None:
        """Args: last: the last constant that is the program's own."""
        query, key = self.heads[:2]
        head_dim, kv_heads = query.shape[3], key.shape[1]
        dim = dim_for(head_dim)
        launch(
            program,
            (len(plan.tiles), query.shape[0] * kv_heads, 1),
            tuple(self.heads),
            (*tensors, plan.query_pos, plan.query_rank, plan.key_pos, plan.key_rank, plan.tiles),
            (*numbers, self.scaling, self.scaling * LOG2_E, kv_heads),
            (head_dim, self.group),
            (
                *(self.tokens, next_power_of_2(self.group), self.tile.keys, dim, len(FACTS), plan.banded, last),
                *(dim != head_dim, query.dtype == torch.float32),
            ),
            self.tile,
        )
