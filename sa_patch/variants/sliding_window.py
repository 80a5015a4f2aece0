"""`swa`: sliding-window attention, the unit of the budgets."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from sa_patch.budget import LayerBudget
from sa_patch.geometry import Group
from sa_patch.patterns import Band, Pattern
from sa_patch.variants.base import Role, Variant


@dataclass(frozen=True, kw_only=True)
class SlidingWindow(Variant):
    """visible(i, j) = 0 <= i - j < w: the last w keys, the query included.

    With sinks under `budget="pairs"` the window shrinks by the sinks, which keeps the pairs exactly the same.
    """

    name: ClassVar[str] = "swa"
    label: ClassVar[str] = "sliding-window attention"
    help: ClassVar[str] = "sliding window: the last `window` keys"
    role: ClassVar[Role] = "baseline"
    layout: ClassVar[str] = "window"
    prefix_consistent: ClassVar[bool] = True

    def sparse_pattern(self, group: Group, layer_idx: int, query: Tensor | None, key: Tensor | None) -> Pattern:
        sizes = self.sizes(group.length)
        width = sizes.window
        if self.budget == "pairs" and width < group.length:
            width -= sizes.sinks
        return Band(width=width, **self.common(group, sizes))

    def sparse_budget(self, length: int, layer_idx: int) -> LayerBudget:
        return self.counted(length, layer_idx)
