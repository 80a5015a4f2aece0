"""From losses of layers alone to a plan: candidates chosen within a budget, and what is left of it given out."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor

from sa_patch.calibration.candidates import Candidate, candidate, possible, recipe_of
from sa_patch.calibration.knapsack import choose
from sa_patch.counting import triangle, window_pairs
from sa_patch.plan import Plan
from sa_patch.variants import Variant


@lru_cache(maxsize=100_000)
def cost(variant: Variant, length: int) -> int:
    """Pairs of one layer at one length, a charged router's share included."""
    if variant.always_dense:
        return triangle(length)
    budget = variant.sparse_budget(length, 0)
    return budget.pairs + budget.charged


def router(variants: Sequence[Variant], length: int) -> float:
    """Pairs per query that choosing keys costs beside `cost`, the mean over layers: half a pair per product."""
    budgets = [one.sparse_budget(length, 0) for one in variants if not one.always_dense]
    beside = sum(budget.router_scores / 2 - budget.charged for budget in budgets)
    return max(0.0, beside) / len(variants) / length


def total(variants: Sequence[Variant], length: int) -> int:
    """Pairs of all layers together at one length."""
    return sum(cost(variant, length) for variant in variants)


def allowed(window: int, layers: int, lengths: Sequence[int]) -> dict[int, int]:
    """Pairs that all layers together may cost, by length: those of `swa` at the mean window."""
    return {length: layers * window_pairs(length, window) for length in lengths}


def estimated_losses(errors: Tensor, probes: Sequence[int], effects: Tensor) -> Tensor:
    """The loss of every candidate in every layer alone: float64 [layers, candidates].

    A layer's loss is taken to follow the error of its attention's output as a power, c * error^e, through the
    candidates whose loss was measured; e is one number for all layers, c each layer's own.

    Args:
        errors: [layers, candidates], of the attention's output.
        probes: candidates whose effect was measured; effects: [probes, layers], the loss with that layer alone sparse.
    """
    tiny = 1e-12
    x = errors[:, list(probes)].clamp(min=tiny).log()
    y = effects.T.clamp(min=tiny).log()
    spread = x - x.mean(1, keepdim=True)
    exponent = float((spread * (y - y.mean(1, keepdim=True))).sum() / spread.square().sum().clamp(min=tiny))
    exponent = min(max(exponent, 0.5), 2.0)  # an error's square is its loss to second order; noise must not turn it
    level = (y - exponent * x).mean(1, keepdim=True)
    return torch.where(errors > 0, (level + exponent * errors.clamp(min=tiny).log()).exp(), 0.0)


def planned(losses: Tensor, candidates: Sequence[Candidate], window: int, lengths: Sequence[int]) -> Plan:
    """The plan of least estimated loss whose pairs are at no length more than those of `swa` at the window."""
    layers, first = losses.shape[0], min(lengths)
    budgets = allowed(window, layers, lengths)
    picks = choose(losses, [cost(one.variant, first) for one in candidates], budgets[first])
    return Plan(tuple(fitted([candidates[pick] for pick in picks], window, lengths)), window)


def fitted(chosen: Sequence[Candidate], window: int, lengths: Sequence[int]) -> list[Variant]:
    """Windows made smaller where the budget is exceeded at some length, then larger as long as it is not, in turns.

    What remains is less than one more key per query in one layer.
    """
    found = list(chosen)
    budgets = allowed(window, len(found), lengths)

    def fits(some: Sequence[Candidate]) -> bool:
        return all(total([one.variant for one in some], length) <= budgets[length] for length in lengths)

    def resized(layer: int, change: int) -> list[Candidate] | None:
        one = found[layer]
        if one.variant.always_dense:
            return None
        other = candidate(one.recipe, int(one.variant.window) + change)
        if other is None or not possible(other.variant, lengths):
            return None
        return [*found[:layer], other, *found[layer + 1 :]]

    order = sorted(range(len(found)), key=lambda layer: -cost(found[layer].variant, min(lengths)))
    step = 0
    while not fits(found):
        smaller = resized(order[step % len(order)], -1)
        found, step = smaller or found, step + 1
        if step > 100_000:
            raise ValueError(f"no plan of {len(found)} layers costs as little as {window} keys per query on average")
    misses, step = 0, 0
    while misses < len(order):
        larger = resized(order[step % len(order)], 1)
        better = larger is not None and fits(larger)
        found, misses, step = (larger or found) if better else found, 0 if better else misses + 1, step + 1
    return [one.variant for one in found]


def shuffled(plan: Plan, seed: int) -> Plan:
    """The same variants on other layers."""
    variants = list(plan.variants)
    random.Random(seed).shuffle(variants)
    return replace(plan, variants=tuple(variants))


def drawn(candidates: Sequence[Candidate], layers: int, window: int, lengths: Sequence[int], seed: int) -> Plan:
    """A plan of random candidates at the same budget."""
    source = random.Random(seed)
    some = [one for one in candidates if not one.variant.always_dense]
    return Plan(tuple(fitted([source.choice(some) for _ in range(layers)], window, lengths)), window)


def swaps(
    plan: Plan,
    lengths: Sequence[int],
    recipes: Sequence[str],
    tries: int,
    judge: Callable[[Plan, Plan], bool],
    seed: int = 0,
) -> tuple[Plan, int]:
    """Budget moved between two layers, or another recipe in one, kept where `judge(new, old)` says it is better.

    Args:
        recipes: what a layer may run.

    Returns:
        (the plan, how many changes were kept)
    """
    source, kept = random.Random(seed), 0
    window = plan.window
    assert window is not None
    for _ in range(tries):
        chosen = [Candidate(recipe_of(variant), variant) for variant in plan.variants]
        sparse = [layer for layer, one in enumerate(chosen) if not one.variant.always_dense]
        moves = source.random() < 0.6
        changed = _moved(chosen, sparse, source) if moves else _replaced(chosen, sparse, recipes, source)
        if changed is None or not all(possible(one.variant, lengths) for one in changed):
            continue
        new = Plan(tuple(fitted(changed, window, lengths)), window)
        if new != plan and judge(new, plan):
            plan, kept = new, kept + 1
    return plan, kept


def _moved(chosen: list[Candidate], sparse: list[int], source: random.Random) -> list[Candidate] | None:
    """A share of one layer's window given to another."""
    if len(sparse) < 2:
        return None
    giver, taker = source.sample(sparse, 2)
    windows = [int(chosen[layer].variant.window) for layer in (giver, taker)]
    share = max(4, round(windows[0] * source.choice((0.15, 0.3, 0.5))))
    less, more = (
        candidate(chosen[layer].recipe, size)
        for layer, size in ((giver, windows[0] - share), (taker, windows[1] + share))
    )
    if less is None or more is None:
        return None
    return [less if layer == giver else more if layer == taker else one for layer, one in enumerate(chosen)]


def _replaced(
    chosen: list[Candidate], sparse: list[int], recipes: Sequence[str], source: random.Random
) -> list[Candidate] | None:
    """Another recipe in one layer."""
    if not sparse:
        return None
    changed = source.choice(sparse)
    recipe = source.choice([name for name in recipes if name != chosen[changed].recipe])
    other = candidate(recipe, int(chosen[changed].variant.window))
    return None if other is None else [other if layer == changed else one for layer, one in enumerate(chosen)]
