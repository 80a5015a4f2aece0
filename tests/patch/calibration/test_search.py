"""Laws of the search: the knapsack is exact, budgets hold at every length, controls cost what the plan costs."""

import itertools
import random

import pytest
import torch

from sa_patch import Plan
from sa_patch.calibration import search
from sa_patch.calibration.candidates import FAMILIES, candidate, candidates, possible, recipe_of
from sa_patch.calibration.knapsack import choose
from sa_patch.counting import window_pairs
from sa_patch.variants import make_variant

WINDOW, LAYERS = 24, 5
NAMES = FAMILIES["reported"].names


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
    some = candidates(WINDOW, lengths)
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
    some = candidates(WINDOW, (256,))
    cost = torch.tensor([search.cost(one.variant, 256) for one in some], dtype=torch.float64)
    losses = torch.zeros(LAYERS, len(some), dtype=torch.float64)
    losses[2] = 1 / cost
    plan = search.planned(losses, some, WINDOW, (256,))
    costs = [search.cost(variant, 256) for variant in plan.variants]
    assert costs[2] > 2 * max(costs[:2] + costs[3:])


def test_shuffled_plans_cost_the_same_and_are_others():
    some = candidates(WINDOW, (256,))
    plan = search.drawn(some, 8, WINDOW, (256,), 3)
    for seed in range(3):
        other = search.shuffled(plan, seed)
        assert sorted(map(repr, other.variants)) == sorted(map(repr, plan.variants)) and other != plan
        for length in (256, 300, 4096):
            assert search.total(other.variants, length) == search.total(plan.variants, length)


def test_swaps_keep_what_is_judged_better_and_the_budget():
    some = candidates(WINDOW, (256,))
    plan, asked = search.drawn(some, LAYERS, WINDOW, (256,), 1), []

    def first_layer_larger(new, old):
        asked.append(new)
        return search.cost(new.variants[0], 256) > search.cost(old.variants[0], 256)

    better, kept = search.swaps(plan, (256,), NAMES, 60, first_layer_larger)
    assert kept > 0 and search.cost(better.variants[0], 256) > search.cost(plan.variants[0], 256)
    assert all(search.total(one.variants, 256) <= LAYERS * window_pairs(256, WINDOW) for one in asked)


@pytest.mark.parametrize("sparse", [0, 1])
def test_plans_with_few_sparse_layers_can_be_swapped(sparse):
    full, one = make_variant("full", {}), candidate("routed", 24)
    plan = Plan((*(full,) * 2, *(one.variant,) * sparse), window=200)
    search.swaps(plan, (256,), NAMES, 20, lambda new, old: False)


@pytest.mark.parametrize("router_cost", FAMILIES)
def test_every_candidate_knows_its_recipe(router_cost):
    found = candidates(64, (1024,), router_cost=router_cost)
    assert {one.recipe for one in found} == {"full", *FAMILIES[router_cost].names}
    for one in found:
        assert recipe_of(one.variant) == one.recipe
        options = one.variant.options()
        if options.get("block_size") or "router_cost" in options:
            assert options["router_cost"] == router_cost


@pytest.mark.parametrize("lengths", [(1024,), (1024, 4096)])
def test_plans_that_pay_their_routers_keep_the_budget_at_every_length(lengths):
    """What leaves no room for keys at some length is no candidate; changes of a plan keep to that too."""
    some, names = candidates(64, lengths, router_cost="charged"), FAMILIES["charged"].names
    assert all(possible(one.variant, lengths) for one in some)
    assert (candidate("routed, blocks of w/8, charged", 64) in some) == (
        lengths == (1024,)
    )  # 4,096 / 8 / 4 products a query
    plan = search.drawn(some, LAYERS, 64, lengths, 0)
    asked = [plan]
    search.swaps(plan, lengths, names, 40, lambda new, old: asked.append(new) or True)
    assert any(search.cost(one, 1024) > one.sparse_budget(1024, 0).pairs for made in asked for one in made.variants)
    for made in asked:
        for length in lengths:
            assert search.total(made.variants, length) <= LAYERS * window_pairs(length, 64)


def test_what_routers_cost_is_told_or_paid_but_not_both():
    free, paid = (
        make_variant("routed", {"window": 64, "block_size": 16, **one}) for one in ({}, {"router_cost": "charged"})
    )
    none = make_variant("full", {})
    products = free.sparse_budget(1024, 0).router_scores
    assert search.router([free, none], 1024) == products / 2 / 2 / 1024 > 0
    assert search.router([paid, none], 1024) == 0 and search.cost(paid, 1024) > paid.sparse_budget(1024, 0).pairs


def test_where_no_router_can_be_paid_the_others_compete():
    controls = FAMILIES["charged"].controls
    assert controls(lambda name: possible(candidate(name, 64).variant, (1024,)))[0] == "routed, blocks of w/4, charged"
    assert controls(lambda name: possible(candidate(name, 64).variant, (16384,)))[0] == "sa+swa, 4 sinks"


def test_estimates_follow_the_error_through_what_was_measured():
    errors = torch.tensor([[0.0, 1.0, 2.0, 4.0], [0.0, 3.0, 6.0, 3.0]], dtype=torch.float64)
    truth = torch.tensor([0.5, 2.0], dtype=torch.float64)[:, None] * errors**1.5
    found = search.estimated_losses(errors, [1, 2], truth[:, [1, 2]].T)
    torch.testing.assert_close(found, truth)
