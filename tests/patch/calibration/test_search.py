"""Laws of the search: the knapsack is exact, budgets hold at every length, controls cost what the plan costs."""

import itertools
import random

import pytest
import torch

from sa_patch import Plan
from sa_patch.calibration import search
from sa_patch.calibration.candidates import RECIPES, candidate, candidates, recipe_of
from sa_patch.calibration.knapsack import choose
from sa_patch.counting import window_pairs
from sa_patch.variants import make_variant

WINDOW, LAYERS = 24, 5


@pytest.mark.parametrize("seed", range(30))
def test_the_knapsack_finds_what_trying_everything_finds(seed):
    source = random.Random(seed)
    layers, count = source.randint(1, 4), source.randint(1, 5)
    pairs = [source.randint(1, 40) for _ in range(count)]
    losses = torch.tensor([[source.random() for _ in pairs] for _ in range(layers)], dtype=torch.float64)
    budget = source.randint(layers * min(pairs), layers * max(pairs))
    allowed = [
        picks
        for picks in itertools.product(range(count), repeat=layers)
        if sum(pairs[pick] for pick in picks) <= budget
    ]

    def loss(picks):
        return sum(float(losses[layer, pick]) for layer, pick in enumerate(picks))

    found = choose(losses, pairs, budget)
    assert tuple(found) in allowed and loss(found) == pytest.approx(min(map(loss, allowed)), abs=1e-12)


def test_a_budget_below_the_cheapest_is_refused():
    with pytest.raises(ValueError, match="cost more than 5 pairs over 2 layers"):
        choose(torch.zeros(2, 2, dtype=torch.float64), [3, 4], 5)


@pytest.mark.parametrize("lengths", [(256,), (256, 512), (512, 300, 1024)])
@pytest.mark.parametrize("seed", range(4))
def test_plans_never_exceed_the_budget_and_use_it(seed, lengths):
    some = candidates(WINDOW, min(lengths))
    losses = torch.rand(LAYERS, len(some), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    plans = [search.planned(losses, some, WINDOW, lengths), search.drawn(some, LAYERS, WINDOW, lengths, seed)]
    for plan in plans:
        left = {
            length: LAYERS * window_pairs(length, WINDOW) - search.total(plan.variants, length) for length in lengths
        }
        assert min(left.values()) >= 0 and plan.window == WINDOW
        assert any(count <= length for length, count in left.items())  # less than one more key per query in one layer


def test_a_layer_that_needs_far_keys_gets_the_window():
    """Planted losses: in one layer they fall with the pairs, in all others nothing matters."""
    some = candidates(WINDOW, 256)
    cost = torch.tensor([search.cost(one.variant, 256) for one in some], dtype=torch.float64)
    losses = torch.zeros(LAYERS, len(some), dtype=torch.float64)
    losses[2] = 1 / cost
    plan = search.planned(losses, some, WINDOW, (256,))
    costs = [search.cost(variant, 256) for variant in plan.variants]
    assert costs[2] > 2 * max(costs[:2] + costs[3:])


def test_shuffled_plans_cost_the_same_and_are_others():
    some = candidates(WINDOW, 256)
    plan = search.drawn(some, 8, WINDOW, (256,), 3)
    for seed in range(3):
        other = search.shuffled(plan, seed)
        assert sorted(map(repr, other.variants)) == sorted(map(repr, plan.variants)) and other != plan
        for length in (256, 300, 4096):
            assert search.total(other.variants, length) == search.total(plan.variants, length)


def test_swaps_keep_what_is_judged_better_and_the_budget():
    some = candidates(WINDOW, 256)
    plan, asked = search.drawn(some, LAYERS, WINDOW, (256,), 1), []

    def first_layer_larger(new, old):
        asked.append(new)
        return search.cost(new.variants[0], 256) > search.cost(old.variants[0], 256)

    better, kept = search.swaps(plan, (256,), 60, first_layer_larger)
    assert kept > 0 and search.cost(better.variants[0], 256) > search.cost(plan.variants[0], 256)
    assert all(search.total(one.variants, 256) <= LAYERS * window_pairs(256, WINDOW) for one in asked)


@pytest.mark.parametrize("sparse", [0, 1])
def test_plans_with_few_sparse_layers_can_be_swapped(sparse):
    full, one = make_variant("full", {}), candidate("routed", 24)
    plan = Plan((*(full,) * 2, *(one.variant,) * sparse), window=200)
    search.swaps(plan, (256,), 20, lambda new, old: False)


def test_every_candidate_knows_its_recipe():
    for one in candidates(64, 1024):
        assert recipe_of(one.variant) == one.recipe and one.recipe in {"full", *RECIPES}


def test_estimates_follow_the_error_through_what_was_measured():
    errors = torch.tensor([[0.0, 1.0, 2.0, 4.0], [0.0, 3.0, 6.0, 3.0]], dtype=torch.float64)
    truth = torch.tensor([0.5, 2.0], dtype=torch.float64)[:, None] * errors**1.5
    found = search.estimated_losses(errors, [1, 2], truth[:, [1, 2]].T)
    torch.testing.assert_close(found, truth)
