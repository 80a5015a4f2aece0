"""Closed forms against counting, and against simulation: inside its interval, or within a stated distance of it."""

import math
from statistics import fmean

import pytest
import torch

import sa_patch
from sa_patch.analysis import coverage, layers, local_coherence, theory
from sa_patch.counting import triangle
from sa_patch.intervals import of_share, quantile

MEAN_FIELD = 0.02  # how far the mean field may be from the mean over orders, windows from 8 on


@pytest.mark.parametrize(("length", "window"), [(7, 1), (20, 4), (33, 12), (9, 30)])
@pytest.mark.parametrize("mode", ["sa", "sa-circular"])
def test_pairs_and_visibility_are_those_of_every_order(mode, length, window):
    circular = mode == "sa-circular"
    variant = sa_patch.variant(mode, window)
    for seed in range(3):
        pattern = next(iter(layers.patterns(variant, length, 1, seed)))
        assert pattern.count() == theory.pairs(length, window, circular)
    share = (theory.pairs(length, window, circular) - length) / triangle(length - 1)
    assert theory.visibility(length, window, circular) == pytest.approx(share)
    if not circular and window <= length:
        assert share == pytest.approx((window - 1) * (2 * length - window) / (length * (length - 1)))


def test_every_earlier_token_is_equally_likely_to_be_seen():
    length, window, seeds = 64, 6, 600
    total = torch.zeros(length, length)
    for seed in range(seeds):
        total += next(iter(layers.patterns(sa_patch.variant("sa", window), length, 1, seed))).visible()
    p = theory.visibility(length, window)
    deviation = (p * (1 - p) / seeds) ** 0.5
    found = total[torch.tril(torch.ones(length, length), -1) > 0] / seeds
    assert float((found - p).abs().max()) < 5 * deviation  # of 2,016 pairs
    previous = float(total.diagonal(-1).mean() / seeds)
    assert abs(previous - p) < 4 * deviation / (length - 1) ** 0.5


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    ("mode", "length", "window"),
    [("sa", 400, 8), ("sa", 300, 40), ("sa-circular", 400, 8), ("sa-bucket", 390, 8), ("swa", 200, 9)],
)
def test_the_expected_curve_is_what_orders_do_on_average(mode, length, window, causal):
    found = coverage(sa_patch.variant(mode, window), length, 6, range(8), causal=causal)
    assert found.exact and found.expected is not None
    exact_layers = 6 if mode == "swa" else 1  # beyond the first layer of random orders it is a mean field
    for layer, (share, expected) in enumerate(zip(found.covered, found.expected, strict=True)):
        assert share == pytest.approx(expected, abs=1e-9 if layer < exact_layers else MEAN_FIELD)


def test_expected_curves_by_distance_sum_up_to_the_curve():
    length, window = 150, 7
    weight = torch.arange(length, 0, -1, dtype=torch.float64)
    for form in ("sliding", "window"):
        by_distance = theory.expected_by_distance(length, window, 4, form=form)
        shares = (by_distance @ weight / triangle(length)).tolist()
        assert shares == pytest.approx(theory.expected_coverage(length, window, 4, form=form))


def test_no_stack_connects_more_than_the_bound():
    for length, window in ((200, 5), (500, 12), (300, 60)):
        found = coverage(sa_patch.variant("sa", window), length, 5, range(6))
        bound = theory.coverage_bound(length, window, 5)
        for (low, _), most, share in zip(found.intervals, bound, found.covered, strict=True):
            assert low <= most + 1e-12 and most <= 1
            assert share <= most + 0.005
        assert bound[0] == pytest.approx(found.covered[0])  # one layer: the expected number is the probability


def test_a_previous_token_is_connected_as_often_as_the_theory_says():
    length, window, depth = 2000, 40, 12
    found = local_coherence(sa_patch.variant("sa", window), length, depth, range(12), last=16)
    low, high = found.previous_interval
    assert low <= theory.visibility(length, window) <= high
    for layer, (low, high) in enumerate(found.previous_within_intervals):
        assert low <= theory.previous_connected(length, window, layer + 1) <= high
    enough = theory.layers_for_previous(length, window, 0.1)
    assert (
        theory.previous_connected(length, window, enough) >= 0.9 > theory.previous_connected(length, window, enough - 1)
    )


def test_layers_needed_are_the_first_that_are_enough():
    for form, causal in (("sliding", True), ("circular", False), ("window", True)):
        depth = theory.layers_needed(500, 20, 0.05, form=form, causal=causal)
        shares = theory.expected_coverage(500, 20, depth, form=form, causal=causal)
        assert shares[-1] >= 0.95 and (depth == 1 or shares[-2] < 0.95)
    assert theory.layers_needed(100, 10, 0.5, form="window", everything=True) == 11  # 99 tokens, 9 a layer
    with pytest.raises(ValueError, match="nothing but itself"):
        theory.layers_needed(100, 1, 0.5)
    with pytest.raises(ValueError, match="between 0 and 1"):
        theory.layers_needed(100, 10, 1.5)


def test_all_causal_pairs_at_once_take_the_layers_of_the_bounds():
    length, window, trials = 60, 12, 40
    lower, upper = theory.layers_for_everything(length, window, 0.5)
    found = coverage(sa_patch.variant("sa", window), length, upper, range(trials))
    first = [one.index(1.0) + 1 if 1.0 in one else upper + 1 for one in found.per_seed]
    assert fmean(found.per_seed[s][-1] == 1.0 for s in range(trials)) >= 0.5  # rigorous: the upper bound is enough
    # The lower bound is where half of the stacks have all neighbours; 40 stacks tell .5 from 0 and 1 for certain.
    share = sum(one <= lower for one in first) / trials
    assert 0.2 <= share <= 0.8


def test_both_directions_cover_everything_in_about_log_w_layers():
    length, window = 1000, 20
    needed = theory.layers_needed(length, window, 0.05, form="circular", causal=False, everything=True)
    found = coverage(sa_patch.variant("sa-circular", window), length, needed, range(8), causal=False)
    assert found.everything[-1] == 1.0
    assert theory.log_depth(length, window) <= needed <= theory.log_depth(length, window) + 2


def test_student_and_wilson_are_those_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    for freedom in (1, 2, 3, 4, 7, 11, 30):
        assert quantile(0.975, freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-6)
    for count, total in ((0, 8), (8, 8), (3, 12)):
        expected = stats.binomtest(count, total).proportion_ci(method="wilson")
        assert of_share(count, total) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_where_there_is_no_closed_form_nothing_is_expected():
    for variant in (
        sa_patch.variant("sa", 8, sinks=2),
        sa_patch.variant("sa", 8, dense_layers=(0,)),
        sa_patch.variant("sa-dyadic", 8),
        sa_patch.variant("sa+swa", 8),
        sa_patch.variant("random-keys", 8),
        sa_patch.Plan((sa_patch.variant("sa", 8), sa_patch.variant("full"))),
    ):
        assert theory.of_variant(variant, 100, 2, causal=True) is None
    assert math.isclose(theory.of_variant(sa_patch.variant("full"), 100, 2, causal=True)[0], 1.0)
