"""`full`: causal attention, the baseline every comparison needs."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from sa_patch.budget import LayerBudget
from sa_patch.counting import triangle
from sa_patch.geometry import Group
from sa_patch.patterns import Pattern
from sa_patch.variants.base import Role, Variant


@dataclass(frozen=True, kw_only=True)
class Full(Variant):
    """visible(i, j) = j <= i. Takes the common options so that sweeps are uniform; none of them changes it."""

    name: ClassVar[str] = "full"
    label: ClassVar[str] = "full attention"
    help: ClassVar[str] = "the model's own attention, untouched: the baseline of every comparison (always included)"
    role: ClassVar[Role] = "baseline"
    always_dense: ClassVar[bool] = True
    prefix_consistent: ClassVar[bool] = True

    def whole_prompt_reason(self) -> str | None:
        return None

    def _check_extras(self) -> None:
        return

    def sparse_pattern(self, group: Group, layer_idx: int, query: Tensor | None, key: Tensor | None) -> Pattern:
        return self.dense(group)

    def sparse_budget(self, length: int, layer_idx: int) -> LayerBudget:
        return LayerBudget(layer_idx, "dense", triangle(length))
