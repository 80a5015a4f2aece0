"""What calibration decides from what it measures: the plan, the best single recipe, and what the report holds."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sa_patch.calibration import search, target
from sa_patch.calibration.candidates import FAMILIES, Candidate, RouterCost, candidate, possible
from sa_patch.calibration.measuring import Measuring
from sa_patch.calibration.outcomes import Calibration, Outcome
from sa_patch.calibration.strata import STRATA, Split
from sa_patch.plan import Plan

SEARCH_STEPS = 8  # budgets that the search for a target tries, about
BETTER = 2.0  # standard errors by which a change must lower the divergence
WEIGHTS = {"text": 2.0, "needle": 1.0, "aggregation": 1.0}

PROPOSED = 5  # plans that the passages to choose with decide between

Tell = Callable[[str, int, int], None]  # what is being done, how much of it is done, how much there is


@dataclass
class Run:
    """One calibration: what it measures with, what it may choose from, and what was asked for."""

    measuring: Measuring
    split: Split
    window: int
    lengths: tuple[int, ...]
    counts: tuple[int, int, int]
    tries: int
    seed: int
    target_kl: float | None
    router_cost: RouterCost
    tell: Tell

    def __post_init__(self) -> None:
        self.candidates, self.count = self.measuring.candidates, self.measuring.count
        self.names = FAMILIES[self.router_cost].names

    @property
    def controls(self) -> tuple[str, str]:
        """The recipes of the budget that are run in one layer alone and always reported."""
        return FAMILIES[self.router_cost].controls(lambda name: self._recipe(name) is not None)

    def _recipe(self, name: str) -> Plan | None:
        """A recipe for all layers at the mean window; None where it leaves no room for keys."""
        one = candidate(name, self.window)
        if one is None or not possible(one.variant, self.lengths):
            return None
        return Plan((one.variant,) * self.count, self.window)

    def run(self) -> Calibration:
        losses = self._fit()
        cheapest = None if self.target_kl is None else self._cheapest(losses)
        recipe = self._best_recipe()
        plan, swaps = self._improve(cheapest or self._proposed(losses, recipe))
        outcomes = self._report(plan, recipe)
        return Calibration(
            plan=plan,
            window=self.window,
            lengths=self.lengths,
            recipe=recipe,
            outcomes=tuple(outcomes),
            passages=dict.fromkeys(STRATA, self.counts[2]),
            swaps=swaps,
            seconds=self.measuring.journal.seconds,
            losses=losses.tolist(),
            target_kl=self.target_kl,
            router_cost=self.router_cost,
        )

    def _planned(self, losses: Tensor, window: int, some: Sequence[int] | None = None) -> Plan:
        """The plan of least estimated loss, of some candidates or of all."""
        numbers = range(len(self.candidates)) if some is None else some
        chosen = [self.candidates[number] for number in numbers]
        return search.planned(losses[:, list(numbers)], chosen, window, self.lengths)

    # Fit

    def _fit(self) -> Tensor:
        """The estimated loss of every candidate in every layer, strata weighted and put on one scale."""
        probes = [
            next(
                number
                for number, one in enumerate(self.candidates)
                if one.recipe == recipe and one.variant.window == self.window
            )
            for recipe in self.controls
        ]
        sums: dict[str, Tensor] = {}
        for number, passage in enumerate(self.split.fit):
            self.tell("fit", number, len(self.split.fit))
            held = self.measuring.fit(number, passage, probes)
            found = (
                torch.tensor(held["errors"], dtype=torch.float64),
                torch.tensor(held["effects"], dtype=torch.float64),
            )
            before = sums.get(passage.stratum)
            estimate = search.estimated_losses(found[0], probes, found[1])
            sums[passage.stratum] = estimate if before is None else before + estimate
        middle = probes[0]  # a stratum counts by how much more or less than this recipe it loses
        weighted = [WEIGHTS[name] * some / some[:, middle].sum().clamp(min=1e-9) for name, some in sums.items()]
        return torch.stack(weighted).sum(0)

    # Choose

    def _cheapest(self, losses: Tensor) -> Plan:
        """The plan of the smallest budget that keeps the target, which becomes the calibration's budget.

        Raises:
            ValueError: when none of at most the budget that was given does.
        """
        assert self.target_kl is not None
        most, tried = self.window, 0
        best = self._planned(losses, most)
        if not self._keeps(best):
            best, _ = self._improve(best)
            if not self._keeps(best):
                raise ValueError(target.unreached(self.target_kl, most, self._strata(best)))
            return best

        def keeps(window: int) -> bool:
            nonlocal tried
            self.tell("search", tried, SEARCH_STEPS)
            tried += 1
            try:
                return self._keeps(self._planned(losses, window))
            except ValueError:  # nothing is that cheap
                return False

        self.window = target.cheapest(keeps, most)
        return self._planned(losses, self.window)

    def _keeps(self, plan: Plan) -> bool:
        """Whether the plan's divergence is at or below the target on every stratum of the passages to choose with."""
        return self.target_kl is None or max(self._strata(plan).values()) <= self.target_kl

    def _strata(self, plan: Plan) -> dict[str, float]:
        """The plan's mean divergence on the passages to choose with, by stratum."""
        found: dict[str, float] = dict.fromkeys(STRATA, 0.0)
        for passage, value in zip(self.split.choose, self._raw(plan), strict=True):
            found[passage.stratum] += value / self.counts[1]
        return found

    def _raw(self, plan: Plan) -> list[float]:
        return self.measuring.choose(plan, self.split.choose)

    def _judged(self, plan: Plan) -> list[float]:
        """The plan's weighted divergence on every passage to choose with, in units of the routed recipe's."""
        scale = self._scale()
        return [
            WEIGHTS[passage.stratum] * value / scale[passage.stratum]
            for passage, value in zip(self.split.choose, self._raw(plan), strict=True)
        ]

    def _scale(self) -> dict[str, float]:
        plan = self._recipe(self.controls[0])
        assert plan is not None
        return {stratum: 1e-9 + value for stratum, value in self._strata(plan).items()}

    def _proposed(self, losses: Tensor, recipe: str) -> Plan:
        """The best of what the fit says of all recipes and of the best one alone, with and without full attention, and
        of that recipe in all layers: losses of layers alone add up only roughly, the larger the less."""
        plans = [self._recipes()[recipe]]
        for name in (None, recipe):
            for dense in (True, False):
                some = [number for number, one in enumerate(self.candidates) if _belongs(one, name, dense)]
                with contextlib.suppress(ValueError):  # nothing of them is that cheap
                    plans.append(self._planned(losses, self.window, some))
        means = []
        for number, plan in enumerate(plans):
            self.tell("plans", number, len(plans))
            means.append(sum(self._judged(plan)))
        return plans[means.index(min(means))]

    def _best_recipe(self) -> str:
        means = {}
        for number, (name, plan) in enumerate(self._recipes().items()):
            self.tell("recipes", number, len(self.names))
            values = self._judged(plan)
            means[name] = sum(values) / len(values)
        return min(means, key=lambda name: means[name])

    def _recipes(self) -> dict[str, Plan]:
        found = {name: self._recipe(name) for name in self.names}
        return {name: plan for name, plan in found.items() if plan is not None}

    def _improve(self, plan: Plan) -> tuple[Plan, tuple[int, int]]:
        """The plan after changes that helped; how many were tried, and how many kept."""
        tried = 0

        def judge(new: Plan, old: Plan) -> bool:
            nonlocal tried
            self.tell("swaps", tried, self.tries)
            tried += 1
            changes = [one - two for one, two in zip(self._judged(new), self._judged(old), strict=True)]
            mean = sum(changes) / len(changes)
            error = math.sqrt(sum((one - mean) ** 2 for one in changes) / (len(changes) - 1) / len(changes))
            return mean < -BETTER * error and (self._keeps(new) or not self._keeps(old))

        plan, kept = search.swaps(plan, self.lengths, self.names, self.tries, judge, self.seed)
        return plan, (tried, kept)

    # Report

    def _report(self, plan: Plan, recipe: str) -> list[Outcome]:
        others = {name: one for name, one in self._recipes().items() if name in self.controls and name != recipe}
        arms = {
            "plan": plan,
            recipe: self._recipes()[recipe],
            **others,
            **{f"plan, shuffled over the layers {turn + 1}": search.shuffled(plan, turn) for turn in range(2)},
            "random plan": search.drawn(self.candidates, self.count, self.window, self.lengths, self.seed),
        }
        found: dict[str, dict[str, list[float]]] = {name: {stratum: [] for stratum in STRATA} for name in arms}
        for number, passage in enumerate(self.split.report):
            self.tell("report", number, len(self.split.report))
            values = self.measuring.report(number, passage, plan, arms)
            for name in arms:
                found[name][passage.stratum].append(values[name])
        return [
            Outcome(name, arms[name], {stratum: sum(some) / len(some) for stratum, some in by.items()}, by)
            for name, by in found.items()
        ]


def _belongs(one: Candidate, recipe: str | None, dense: bool) -> bool:
    """Whether a candidate is of a recipe (of any: None), or full attention where that is wanted."""
    return dense if one.variant.always_dense else recipe in (None, one.recipe)
