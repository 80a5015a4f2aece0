"""Laws of the statistics: planted effects are found, noise is not, and certainty is never claimed from nothing."""

import numpy as np
import pytest
from scipy import stats as scipy_stats

from sa_eval import stats


def columns(*arms):
    return [np.stack(arms, axis=1).astype(float)]


def difference(strata, arm=1, base=0):
    return stats.paired_difference(strata, arm, base, stats.bootstrap_means(strata))


def test_a_planted_effect_is_found():
    rng = np.random.default_rng(1)
    base = rng.random(100) < 0.8
    worse = base & (rng.random(100) < 0.75)
    found = difference(columns(base, worse))
    assert found.high < 0 and found.low < worse.mean() - base.mean() < found.high


def test_noise_is_called_significant_about_one_time_in_twenty():
    rng = np.random.default_rng(2)
    called = 0
    for _ in range(200):
        base, other = rng.random((2, 80)) < 0.6
        strata = columns(base, other)
        means = stats.bootstrap_means(strata, resamples=500)
        called += stats.paired_difference(strata, 1, 0, means).excludes_zero
    assert called / 200 < 0.10


def test_pairing_finds_what_unpaired_intervals_cannot():
    rng = np.random.default_rng(3)
    base = rng.random(60)
    strata = columns(base, base - 0.02 + 0.01 * rng.random(60))
    means = stats.bootstrap_means(strata)
    one, other = stats.accuracy(strata, 0, means), stats.accuracy(strata, 1, means)
    assert one.low < other.value < one.high  # overlapping
    assert difference(strata).excludes_zero


def test_the_paired_bootstrap_agrees_with_scipy():
    rng = np.random.default_rng(4)
    base, other = rng.random(40), rng.random(40) ** 2
    found = difference(columns(base, other))
    wanted = scipy_stats.bootstrap(
        (other - base,), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), abs=0.01)


def test_strata_weigh_alike_whatever_their_size():
    strata = [np.zeros((90, 1)), np.ones((10, 1))]
    assert stats.stratified_mean(strata)[0] == 0.5
    assert stats.bootstrap_means(strata, resamples=50) == pytest.approx(0.5)


def test_resampling_is_the_same_every_time():
    strata = columns(np.arange(10) / 10, np.arange(10)[::-1] / 10)
    assert np.array_equal(stats.bootstrap_means(strata, 100), stats.bootstrap_means(strata, 100))


@pytest.mark.parametrize("value", [0, 1])
def test_no_certainty_at_the_edges(value):
    strata = columns(np.full(20, value))
    found = stats.accuracy(strata, 0, stats.bootstrap_means(strata))
    assert found.method == "wilson" and found.high - found.low > 0.1


def test_equal_arms_are_not_certain_to_be_equal():
    scores = np.ones(20)
    found = difference(columns(scores, scores))
    assert found.value == 0 and found.low < -0.1 and found.high > 0.1 and not found.excludes_zero


def test_wilson_is_used_for_right_or_wrong_and_the_bootstrap_for_shares():
    binary, shares = columns(np.arange(20) % 2), columns(np.arange(20) / 20)
    assert stats.accuracy(binary, 0, stats.bootstrap_means(binary)).method == "wilson"
    assert stats.accuracy(shares, 0, stats.bootstrap_means(shares)).method == "bootstrap"


def test_a_single_seed_has_no_spread():
    assert stats.between_seed_sd([0.5]) is None
    assert stats.between_seed_sd([0.4, 0.6]) == pytest.approx(0.1414, abs=1e-3)
