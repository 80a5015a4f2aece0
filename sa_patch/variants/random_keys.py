"""`random-keys`: the control of every comparison with `sa`, random keys without an order behind them."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from sa_patch.budget import LayerBudget
from sa_patch.counting import triangle, window_pairs
from sa_patch.draws import draw_earlier
from sa_patch.geometry import Group
from sa_patch.patterns import Pattern, Scattered
from sa_patch.variants.base import Role, Sizes, Variant


@dataclass(frozen=True, kw_only=True)
class RandomKeys(Variant):
    """Query i sees itself and min(i, w - 1) earlier positions, drawn uniformly without replacement, anew per query.

    keys(i) are the first w - 1 values of a pseudo-random permutation of 0..i-1 that is a function of (seed, layer, i).
    So every query has exactly the keys swa gives it in number, any prefix of a text gives what the text gives, and a
    window over the sequence is full attention. With sinks or local, the rest is drawn from what they don't show: under
    budget="pairs" the number of pairs stays exactly that of swa.

    A control, not a method: what `sa` owes to random keys alone, without its one order of the tokens per layer. Keys
    that every query draws for itself lie nowhere together, so kernels have to gather them one by one.
    """

    name: ClassVar[str] = "random-keys"
    label: ClassVar[str] = "control: random keys, drawn anew per query"
    help: ClassVar[str] = "a control: `window` keys drawn anew for every query, without any structure"
    role: ClassVar[Role] = "control"
    seeded: ClassVar[bool] = True
    caveat: ClassVar[str] = "a control, not a method: it shows what random keys alone do, and is not made to be fast"
    layout: ClassVar[str] = "scattered"
    prefix_consistent: ClassVar[bool] = True

    def _drawn(self, sizes: Sizes) -> int:
        """Keys per query besides those that sinks and local show and the query itself."""
        shown = sizes.sinks + max(sizes.local, 1)
        return max(0, sizes.window - (shown if self.budget == "pairs" else 1))

    def sparse_pattern(self, group: Group, layer_idx: int, query: Tensor | None, key: Tensor | None) -> Pattern:
        sizes = self.sizes(group.length)
        reach, drawn = max(sizes.local, 1), self._drawn(sizes)
        if drawn + sizes.sinks + reach >= group.length or sizes.window >= group.length:
            return self.dense(group)
        first = group.length - group.query_len
        keys = draw_earlier(
            first, group.length, drawn, self.seed, layer_idx, group.device, sinks=sizes.sinks, reach=reach
        )
        return Scattered(keys=keys, **self.common(group, sizes))

    def sparse_budget(self, length: int, layer_idx: int) -> LayerBudget:
        sizes = self.sizes(length)
        shown = length
        if sizes.window < length:
            shown = min(length, self._drawn(sizes) + sizes.sinks + max(sizes.local, 1))
        sparse = max(0, length - self.dense_tail)
        return LayerBudget(layer_idx, "sparse", window_pairs(sparse, shown) + triangle(length) - triangle(sparse))
