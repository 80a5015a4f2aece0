"""What a calibration found: the plan, what it and its controls cost on unseen passages, and the answer in a line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sa_patch import intervals, shown
from sa_patch.calibration import search
from sa_patch.calibration.candidates import RouterCost
from sa_patch.calibration.strata import STRATA
from sa_patch.plan import Plan
from sa_patch.variants import make_variant

FULL = make_variant("full", {})


@dataclass(frozen=True)
class Outcome:
    """One arm on the report's passages.

    Attributes:
        name: "plan", the recipe's name, or which control.
        divergence: mean KL(full || arm) in nats per position, by stratum.
        of_passages: the same of every passage, by stratum, in the order of the passages.
    """

    name: str
    plan: Plan
    divergence: dict[str, float]
    of_passages: dict[str, list[float]]


@dataclass(frozen=True, repr=False)
class Calibration:
    """A plan, and what it was measured to cost.

    Attributes:
        plan: at most the budget's pairs at every length, on average over the layers.
        window: keys per query, the mean over layers.
        recipe: the best single recipe on the passages to choose with.
        outcomes: plan first, then the best recipe, the other recipes, the controls.
        passages: those of the report, by stratum.
        swaps: (tried, kept).
        seconds: what measuring took, sessions of a resumed one together.
        losses: the estimate of every candidate in every layer, layers x candidates.
        target_kl: what the plan keeps on every stratum of the passages to choose with; `window` is then the budget that
            was found. None: the budget was given.
        router_cost: "charged": the pairs include what choosing keys cost.
    """

    plan: Plan
    window: int
    lengths: tuple[int, ...]
    recipe: str
    outcomes: tuple[Outcome, ...]
    passages: dict[str, int]
    swaps: tuple[int, int]
    seconds: float
    losses: list[list[float]]
    target_kl: float | None = None
    router_cost: RouterCost = "reported"

    def outcome(self, name: str) -> Outcome:
        return next(one for one in self.outcomes if one.name == name)

    def difference(self, name: str, other: str, stratum: str = "text") -> tuple[float, float, float]:
        """Mean difference in divergence, and its 95 % interval over passages (Student's t, paired)."""
        pairs = zip(self.outcome(name).of_passages[stratum], self.outcome(other).of_passages[stratum], strict=True)
        return interval([one - two for one, two in pairs])

    def facts(self) -> list[shown.Fact]:
        """The answer, every outcome (plan, recipes, controls) by stratum, and the plan, as (name, text)."""
        strata = [name for name in STRATA if self.passages.get(name)]
        means = {
            one.name: ", ".join(f"{one.divergence[name]:.3f} on {name}" for name in strata) for one in self.outcomes
        }
        return [
            ("answer", self.sentence()),
            *(("KL", f"{means[name]}: {name}") for name in means),
            *self.plan.facts(),
        ]

    def __repr__(self) -> str:
        return shown.screen(self.facts(), "calibration.plan.groups() has all")

    def _repr_html_(self) -> str:
        return shown.html(self.facts())

    def reported(self, stratum: str = "text") -> tuple[float, float, float]:
        """The plan's divergence on the report's passages, and its 95 % interval over them (Student's t)."""
        return interval(self.outcome("plan").of_passages[stratum])

    def over_target(self) -> list[str]:
        """The strata on whose report passages the plan's divergence is above the target."""
        found = self.outcome("plan").divergence
        return [name for name in STRATA if self.target_kl is not None and found[name] > self.target_kl]

    def _budget_told(self) -> str:
        paid = ", routers paid from them" if self.router_cost == "charged" else ""
        return f"{self.window} keys per query{paid}"

    def sentence(self) -> str:
        """The answer in one line."""
        plan, recipe, length = self.outcome("plan"), self.outcome(self.recipe), self.lengths[0]
        share = search.total(self.plan.variants, length) / len(self.plan.variants) / search.cost(FULL, length)
        routers = [search.router(one.plan.variants, length) for one in (plan, recipe)]
        beside = (
            f" Choosing keys costs {routers[0]:.0f} pairs per query beside that, the recipe {routers[1]:.0f}."
            if max(routers) >= 1
            else ""
        )
        if self.target_kl is not None:
            _, low, high = self.reported()
            over = [f"{name} {plan.divergence[name]:.3f}" for name in self.over_target()]
            missed = f"Above the target on unseen passages: {', '.join(over)}. " if over else ""
            return (
                f"{missed}{share:.0%} of full attention's pairs ({self._budget_told()}, {length:,} tokens) "
                f"keep KL at or below {self.target_kl:g} on the passages that the plan was chosen with; on unseen "
                f"text it is {plan.divergence['text']:.3f} nats per token (95 % interval {max(0.0, low):.3f} to "
                f"{high:.3f}), the best single recipe's, {self.recipe}, {recipe.divergence['text']:.3f}.{beside}"
            )
        worse = [
            f"{name} {plan.divergence[name]:.3f} against {recipe.divergence[name]:.3f}"
            for name in STRATA
            if plan.divergence[name] > recipe.divergence[name]
        ]
        if plan.plan.variants == recipe.plan.variants:
            return (
                f"At {share:.0%} of full attention's pairs ({self._budget_told()}, {length:,} tokens) no plan that was "
                f"found is better than the best single recipe, {self.recipe}, in all layers, which is the plan: "
                f"{plan.divergence['text']:.3f} nats per token from full attention on your text.{beside}"
            )
        loses = f" It loses to it on {', '.join(worse)}." if worse else ""
        return (
            f"At {share:.0%} of full attention's pairs ({self._budget_told()}, {length:,} tokens) this plan is "
            f"{plan.divergence['text']:.3f} nats per token from full attention on your text; the best single recipe, "
            f"{self.recipe}, {recipe.divergence['text']:.3f}.{loses}{beside}"
        )


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and 95 % interval of independent values (Student's t); one value has none."""
    ends = intervals.of_mean(values, low=-math.inf) if len(values) > 1 else (-math.inf, math.inf)
    return sum(values) / len(values), *ends
