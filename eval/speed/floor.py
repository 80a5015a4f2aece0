"""The floor of every speed table: the same model with its attention removed. A measuring aid, not a method.

Every token passes on its own value as if it saw itself only, and the output is written as attention writes it. All else
runs: projections, position embedding, the cache, the feed-forward layers. No attention can be faster end to end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

from sa_eval.speed.types import TimedArm

NAME = "sa_eval_none"  # of the attention implementation


def _own_value(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: object, **_: Any
) -> tuple[Tensor, None]:
    """transformers' attention function: query [B, H, Q, D], value [B, Hkv, N, D] -> ([B, Q, H, D], None)."""
    own = value[:, :, -query.shape[2] :].transpose(1, 2)
    return own.repeat_interleave(query.shape[1] // value.shape[1], dim=2), None


AttentionInterface.register(NAME, _own_value)


@dataclass(frozen=True)
class Floor:
    """Measured like an arm, beside the arms."""

    name: str = "none"
    label: str = "none"
    seeds: tuple[int, ...] = (0,)

    def apply(self, model: Any, seed: int) -> Removed:
        """Remove the model's attention; the caller restores it.

        Raises:
            NotImplementedError: for models whose attention does not go through transformers' AttentionInterface.
        """
        before = model.config._attn_implementation
        model.set_attn_implementation(NAME)
        if model.config._attn_implementation != NAME:
            raise NotImplementedError(
                f"{type(model).__name__} does not run its attention through transformers' AttentionInterface, so it "
                "cannot be removed"
            )
        return Removed(model, before)

    def row(self) -> TimedArm:
        return TimedArm(self.name, self.label, "none (attention removed: a floor, not a method)")


@dataclass(frozen=True)
class Removed:
    """A model without its attention."""

    model: Any
    before: str

    def restore(self) -> None:
        self.model.set_attn_implementation(self.before)
