"""`sa_patch.calibrate`: the plan of least divergence from full attention on the user's own text, at an equal budget.

1. Fit. One dense pass per passage shows every layer's queries, keys and values: every candidate's error at the
   attention's output, on sampled queries. A few candidates are run in one layer alone: what an error costs in the
   next-token distribution. From both, an estimate for every layer and candidate, and a knapsack over the layers.
2. Choose. The best single recipe, and changes of the plan that are kept where the divergence on other passages falls by
   more than two standard errors.
3. Report. On passages that nothing was decided with: plan, recipe, and controls, with paired intervals.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from sa_patch import integration
from sa_patch.calibration import search, target
from sa_patch.calibration.candidates import (
    FAMILIES,
    LEAST,
    SHARES,
    SMALLER,
    Candidate,
    RouterCost,
    candidate,
    candidates,
    possible,
)
from sa_patch.calibration.errors import output_errors
from sa_patch.calibration.journal import Journal
from sa_patch.calibration.outcomes import FULL, Calibration, Outcome
from sa_patch.calibration.reading import Heads, Reader, divergence, thinned
from sa_patch.calibration.strata import STRATA, Passage, Split, split
from sa_patch.plan import Plan

FIT_POSITIONS, CHOOSE_POSITIONS, REPORT_POSITIONS = 128, 128, 512  # of a passage, evenly
SEARCH_STEPS = 8  # budgets that the search for a target tries, about
BETTER = 2.0  # standard errors by which a change must lower the divergence
WEIGHTS = {"text": 2.0, "needle": 1.0, "aggregation": 1.0}

Tell = Callable[[str, int, int], None]  # what is being done, how much of it is done, how much there is


def calibrate(
    model: nn.Module,
    texts: Sequence[tuple[str, Sequence[int]]],
    window: int,
    *,
    lengths: Sequence[int] = (1024,),
    passages: tuple[int, int, int] = (2, 4, 6),
    swaps: int = 24,
    seed: int = 0,
    target_kl: float | None = None,
    router_cost: RouterCost = "reported",
    journal: str | Path | None = None,
    tell: Tell | None = None,
) -> Calibration:
    """Find the plan of least KL(full || plan) on a text, at the pairs of `swa` with `window` keys per query.

    With `target_kl`, the cheapest plan of at most so many pairs whose KL is at or below it, on every stratum of the
    passages to choose with; the budget is found to a sixteenth of itself.

    The model is bare before and afterwards.

    Args:
        texts: (name, token ids), long enough for the passages; tokenize without special tokens.
        window: mean keys per query over the layers; with `target_kl` the most there may be.
        lengths: prompt lengths at which the budget holds; passages have the first one.
        passages: to fit, choose and report with, of every stratum.
        swaps: changes of the plan that are tried on the passages to choose with.
        target_kl: nats per scored position.
        router_cost: "reported": choosing keys is free; "charged": the window pays for every router, half a pair per
            product of a query or a key, so that recipes compete at equal cost. Plans of charged routers take whole
            prompts only.
        journal: a file that keeps what was measured; the same call goes on from it.
        tell: called with what is being done, how much is done, and how much there is.

    Raises:
        ValueError: when the texts are too short, or the model can't be patched or is patched; or when no plan reaches
            `target_kl`, with the nearest figure.
    """
    numbers = {"lengths": lengths, "passages": passages, "swaps": swaps, "seed": seed}
    made = check(texts, window, **numbers, target_kl=target_kl, router_cost=router_cost)
    if integration.state(model) is not None:
        raise ValueError("the model is patched: restore it, calibration compares with its own full attention")
    reader = Reader(model)
    some = candidates(window, lengths, SHARES if target_kl is None else (*SMALLER, *SHARES), router_cost)
    held = Journal(
        None if journal is None else Path(journal),
        {
            "model": _weights(model),
            "passages": _hash(json.dumps([one.ids for one in (*made.fit, *made.choose, *made.report)])),
            "window": window,
            "lengths": list(lengths),
            "seed": seed,
            "candidates": _hash(repr(some)),
            **({} if target_kl is None else {"target_kl": target_kl}),
            **({} if router_cost == "reported" else {"router_cost": router_cost}),
        },
    )
    asked = window, tuple(lengths), passages, swaps, seed, target_kl, router_cost
    run = _Run(reader, made, some, *asked, held, tell or (lambda *_: None))
    with torch.inference_mode():
        return run.run()


def check(
    texts: Sequence[tuple[str, Sequence[int]]],
    window: int,
    *,
    lengths: Sequence[int] = (1024,),
    passages: tuple[int, int, int] = (2, 4, 6),
    swaps: int = 24,
    seed: int = 0,
    target_kl: float | None = None,
    router_cost: RouterCost = "reported",
) -> Split:
    """The passages that `calibrate` would read, without a model.

    Raises:
        ValueError: as `calibrate` does, before anything is measured.
    """
    if router_cost not in FAMILIES:
        raise ValueError(f"router_cost must be {' or '.join(map(repr, FAMILIES))}, got {router_cost!r}")
    numbers = {"window": window, "swaps": swaps, **{f"lengths[{index}]": one for index, one in enumerate(lengths)}}
    numbers |= {f"passages[{index}]": one for index, one in enumerate(passages)}
    for name, number in numbers.items():
        least = 0 if name == "swaps" else LEAST if name == "window" else 1
        if isinstance(number, bool) or not isinstance(number, int) or number < least:
            raise ValueError(f"{name} must be a whole number of at least {least}, got {number!r}")
    if not lengths or min(lengths) <= 2 * window:
        raise ValueError(f"every length must be more than twice the window of {window}, got {tuple(lengths)}")
    number = isinstance(target_kl, (int, float)) and not isinstance(target_kl, bool)
    if target_kl is not None and not (number and 0 < target_kl < math.inf):
        raise ValueError(f"target_kl must be a number of nats above 0, got {target_kl!r}")
    if len(passages) != 3:
        raise ValueError(f"passages are three numbers, to fit, choose and report with; got {passages!r}")
    return split(texts, lengths[0], passages, window, seed)


def _weights(model: nn.Module) -> str:
    """A hash of the weights' names, shapes, dtypes and sums."""
    found = hashlib.sha256()
    for name, parameter in model.named_parameters():
        total = float(parameter.detach().float().sum())
        found.update(f"{name}{tuple(parameter.shape)}{parameter.dtype}{total:.6e}".encode())
    return found.hexdigest()


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


class Fit(TypedDict):
    """What one passage to fit with says, as the journal holds it.

    Attributes:
        errors: of the attention's output, [layers][candidates].
        effects: the divergence with one layer alone sparse, [probes][layers].
    """

    errors: list[list[float]]
    effects: list[list[float]]


@dataclass
class _Run:
    """One calibration: what it reads, what it may choose from, and what it has measured so far."""

    reader: Reader
    split: Split
    candidates: list[Candidate]
    window: int
    lengths: tuple[int, ...]
    counts: tuple[int, int, int]
    tries: int
    seed: int
    target_kl: float | None
    router_cost: RouterCost
    journal: Journal
    tell: Tell
    expected: dict[Passage, Tensor] = field(default_factory=dict)  # full's distributions on the passages to choose with

    def __post_init__(self) -> None:
        self.count = len(self.reader.layers)
        self.dense = Plan((FULL,) * self.count)
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
        plan = self._planned(losses, self.window) if self.target_kl is None else self._cheapest(losses)
        recipe = self._best_recipe()
        plan, swaps = self._improve(plan)
        outcomes = self._report(plan, recipe)
        return Calibration(
            plan=plan,
            window=self.window,
            lengths=self.lengths,
            recipe=recipe,
            outcomes=tuple(outcomes),
            passages=dict.fromkeys(STRATA, self.counts[2]),
            swaps=swaps,
            seconds=self.journal.seconds,
            losses=losses.tolist(),
            target_kl=self.target_kl,
            router_cost=self.router_cost,
        )

    def _planned(self, losses: Tensor, window: int) -> Plan:
        return search.planned(losses, self.candidates, window, self.lengths)

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
            held = self.journal.get(f"fit {number}", lambda passage=passage: self._fit_passage(passage, probes))
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

    def _fit_passage(self, passage: Passage, probes: Sequence[int]) -> Fit:
        ids, positions = self.reader.ids(passage), thinned(passage.scored, FIT_POSITIONS)
        errors = torch.zeros(self.count, len(self.candidates), dtype=torch.float64)

        def observe(*call: Any) -> None:
            heads = Heads(*call)
            projection = getattr(self.reader.attention[heads.layer], "o_proj", None)
            errors[heads.layer] = output_errors(heads, self.candidates, projection)

        with self.reader.running(self.dense) as state, self.reader.outputs_kept() as kept:
            state.observer = observe
            expected = self.reader.log_probs(ids, positions)
            outputs = list(kept)
        effects = []
        for number in probes:
            effects.append(
                [self._alone(number, layer, ids, positions, expected, outputs) for layer in range(self.count)]
            )
        return {"errors": errors.tolist(), "effects": effects}

    def _alone(self, number: int, layer: int, ids: Tensor, positions: list[int], expected: Tensor, outputs) -> float:
        """The divergence with one candidate in one layer and full attention in all others."""
        variants = [*self.dense.variants]
        variants[layer] = self.candidates[number].variant
        with self.reader.running(Plan(tuple(variants))), self.reader.beginning_at(layer, outputs):
            return divergence(expected, self.reader.log_probs(ids, positions))

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
        return self.journal.get(f"choose {_key(plan)}", lambda: self._divergences(plan, self.split.choose))

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

    def _divergences(self, plan: Plan, passages: Sequence[Passage]) -> list[float]:
        found = []
        for passage in passages:
            positions = thinned(passage.scored, CHOOSE_POSITIONS)
            ids = self.reader.ids(passage)
            with self.reader.running(plan):
                other = self.reader.log_probs(ids, positions)
            found.append(divergence(self._expected(passage, ids, positions), other))
        return found

    def _expected(self, passage: Passage, ids: Tensor, positions: list[int]) -> Tensor:
        """The full model's distributions on a passage to choose with, computed once."""
        if passage not in self.expected:
            self.expected[passage] = self.reader.log_probs(ids, positions)
        return self.expected[passage]

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
            values = self.journal.get(
                f"report {number} {_key(plan)}", lambda passage=passage: self._report_passage(passage, arms)
            )
            for name in arms:
                found[name][passage.stratum].append(values[name])
        return [
            Outcome(name, arms[name], {stratum: sum(some) / len(some) for stratum, some in by.items()}, by)
            for name, by in found.items()
        ]

    def _report_passage(self, passage: Passage, arms: dict[str, Plan]) -> dict[str, float]:
        ids, positions = self.reader.ids(passage), thinned(passage.scored, REPORT_POSITIONS)
        expected, found = self.reader.log_probs(ids, positions), {}
        for name, plan in arms.items():
            with self.reader.running(plan):
                found[name] = divergence(expected, self.reader.log_probs(ids, positions))
        return found


def _key(plan: Plan) -> str:
    return hashlib.sha256(repr(plan.variants).encode()).hexdigest()[:16]
