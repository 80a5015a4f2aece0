"""`gated`: a sliding window and stochastic attention side by side, each weighed by a trained gate (arXiv 2604.00754).

Not in the table of variants, because it needs parameters in the model: `sa_patch.gate` makes them.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import ClassVar, Literal

from torch import Tensor

from sa_patch.budget import LayerBudget
from sa_patch.geometry import Group
from sa_patch.patterns import Pattern
from sa_patch.randomness import step_seed
from sa_patch.variants.base import Variant
from sa_patch.variants.options import option, options_of
from sa_patch.variants.sliding_window import SlidingWindow
from sa_patch.variants.stochastic import Stochastic


@dataclass(frozen=True, kw_only=True)
class Gated(Stochastic):
    """output = sigmoid(g_swa) * swa(q, k, v) + sigmoid(g_sa) * sa(q, k, v), gates per token and head.

    Each branch has half of the window (swa the larger half); the budget is the sum of their pairs. A key that both
    branches show is computed, and counted, twice, so the sum is a little above `swa` at the same window (by w^2/4 pairs
    of w n, in early queries). Sinks are charged within each half.

    Attributes:
        resample: "step" draws other permutations in every training step and keeps those of `seed` for evaluation;
            "never" trains with those of `seed` too.
    """

    name: ClassVar[str] = "gated"
    label: ClassVar[str] = "sliding window and stochastic attention, trained gates"
    help: ClassVar[str] = "half the budget local, half stochastic, each output times a trained gate"
    forms: ClassVar[dict] = {}

    decode: Literal["full", "sparse"] = option(
        "sparse", "sparse: generated tokens read their own row of both patterns, as in training", outside_budget=True
    )
    resample: Literal["step", "never"] = option(
        "step", "step: other permutations in every training step; never: always those of the seed"
    )

    def __post_init__(self) -> None:
        if self.window == 1:
            raise ValueError("window=1 has no two halves: gated needs a window of at least 2 keys, one per branch")
        if isinstance(self.window, float):
            raise ValueError(
                f"window={self.window} is a fraction of the prompt, whose halves are not whole at every length: give a "
                "number of tokens"
            )
        super().__post_init__()
        if self.decode != "sparse":
            raise ValueError(
                "decode='full' shows both branches the whole cache, which the gates were not trained on: leave it out"
            )
        for name in ("local", "dense_tail", "dense_below"):
            if getattr(self, name):
                raise ValueError(
                    f"{name}={getattr(self, name)!r} is for variants that are not trained: leave it out (the sliding "
                    "branch is local already)"
                )
        try:
            _ = self.branches
        except ValueError as error:
            raise ValueError(f"each branch has half of window={self.window}, and {error}") from error

    @cached_property
    def branches(self) -> tuple[Variant, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The sliding window and stochastic attention, each with its half of the window."""
        given = {name: value for name, value in self.options().items() if name not in ("window", "resample")}
        shared = {item.name for item in options_of(SlidingWindow)}
        assert isinstance(self.window, int)
        half = self.window // 2
        local = SlidingWindow(
            **{name: value for name, value in given.items() if name in shared}, window=self.window - half
        )
        return local, Stochastic(**given, window=half)

    def sparse_pattern(self, group: Group, layer_idx: int, query: Tensor | None, key: Tensor | None) -> Pattern:
        raise NotImplementedError(f"{self.name!r} has two patterns, those of its `branches`: ask one of them")

    def sparse_budget(self, length: int, layer_idx: int) -> LayerBudget:
        budgets = [branch.sparse_budget(length, layer_idx) for branch in self.branches]
        return LayerBudget(layer_idx, "sparse", sum(one.pairs for one in budgets))

    def heads_budget(self, length: int, layer_idx: int, kv_heads: int) -> LayerBudget:
        budgets = [branch.heads_budget(length, layer_idx, kv_heads) for branch in self.branches]
        return LayerBudget(layer_idx, "sparse", sum(one.pairs for one in budgets))


@lru_cache(maxsize=8)  # all layers of a step ask for the same
def at_step(variant: Variant, step: int) -> Variant:
    """The variant with the permutations of a training step; those of its own seed at step 0."""
    if not step or not variant.seeded:
        return variant
    values = {item.name: getattr(variant, item.name) for item in options_of(type(variant))}
    return type(variant)(**{**values, "seed": step_seed(variant.seed, step)})
