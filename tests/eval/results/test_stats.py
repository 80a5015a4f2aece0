"""Laws of the statistics: certainty is never claimed from nothing, tests are exact or agree with scipy's."""

import itertools

import numpy as np
import pytest
from scipy import stats as scipy_stats

from sa_eval.results import intervals, significance, stats


def strata(*by_task):
    """Tasks as (base scores, arm scores, more arms' scores ...)."""
    names = ("base", "arm", "third")
    return [
        stats.Stratum(f"task {position}", names[: len(columns)], np.stack(columns, axis=1).astype(float))
        for position, columns in enumerate(by_task)
    ]


def difference(*by_task):
    return intervals.difference(strata(*by_task), "arm", "base")


def p_value(*by_task):
    return significance.paired_test(strata(*by_task), "arm", "base").p_value


def shares(documents, seed=4):
    rng = np.random.default_rng(seed)
    return rng.random(documents), rng.random(documents) ** 2


def test_a_planted_effect_is_found():
    rng = np.random.default_rng(1)
    base = rng.random(100) < 0.8
    worse = base & (rng.random(100) < 0.75)
    found = difference((base, worse))
    assert found.high < 0 and found.low < worse.mean() - base.mean() < found.high
    assert p_value((base, worse)) < 1e-4


def test_pairing_finds_what_unpaired_intervals_cannot():
    rng = np.random.default_rng(3)
    base = rng.random(60)
    other = base - 0.02 + 0.01 * rng.random(60)
    one, two = (stats.accuracy(strata((base, other)), name) for name in ("base", "arm"))
    assert one.low < two.value < one.high  # overlapping
    assert difference((base, other)).high < 0 and p_value((base, other)) < 1e-3


def test_the_interval_of_a_difference_of_shares_is_close_to_scipys_bootstrap():
    base, other = shares(40)
    found = difference((base, other))
    wanted = scipy_stats.bootstrap(
        (other - base,), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), abs=0.02)


def test_random_signs_agree_with_scipys_permutation_test():
    base, other = shares(40)
    other += 0.25
    wanted = scipy_stats.permutation_test(
        (other - base,), np.mean, permutation_type="samples", n_resamples=100_000, rng=np.random.default_rng(0)
    ).pvalue
    assert p_value((base, other)) == pytest.approx(wanted, abs=0.005)


def test_random_signs_of_right_and_wrong_are_mcnemars_test():
    """Documents that weigh unequally take random signs; where weights do not matter, both tests must agree."""
    rng = np.random.default_rng(5)
    base, other = rng.random((2, 60)) < np.array([[0.8], [0.65]])
    exact = p_value((base, other))
    assert exact == pytest.approx(
        scipy_stats.binomtest(int((other & ~base).sum()), int((other ^ base).sum())).pvalue, rel=1e-12
    )
    assert significance._random_signs(strata((base, other)), "arm", "base") == pytest.approx(exact, abs=0.02)


def test_the_bound_is_above_the_exact_p_value_and_close_to_it():
    """Beyond what draws can resolve; all 2 ** 16 signs are tried."""
    rng = np.random.default_rng(6)
    sizes = np.sort(rng.random(16) + 0.02)
    signs = np.array(list(itertools.product((-1, 1), repeat=16)))
    for opposite, true in ((0, 0.0), (1, 0.0), (3, 0.0), (0, 0.02), (1, -0.1)):
        values = np.concatenate([-sizes[:opposite], sizes[opposite:]])
        shifted = values - true
        exact = (np.abs(signs @ shifted) >= abs(shifted.sum()) - 1e-9).mean()
        bound = significance.bound([values], true)
        assert exact <= bound * (1 + 1e-6) and bound < 40 * exact


def test_a_plain_effect_stays_significant_among_hundreds_of_tests():
    """10,000 draws alone could not say less than 1 in 10,000, and Holm over 2,000 cells would drown it."""
    rng = np.random.default_rng(7)
    base, other = np.ones(200), rng.integers(0, 3, 200) / 3
    found = p_value((base, other))
    assert found < 1e-12
    assert significance.holm([found, *[0.5] * 2000])[0] < 0.05


def test_strata_weigh_alike_whatever_their_size():
    made = [
        stats.Stratum("large", ("arm",), np.zeros((90, 1))),
        stats.Stratum("small", ("arm",), np.concatenate([np.ones((9, 1)), np.full((1, 1), 1)])),
    ]
    assert stats.stratified_mean(made, "arm") == 0.5
    assert stats._resampled(made, "arm") == pytest.approx(0.5)


def test_resampled_means_vary_as_means_do_however_few_documents_a_task_has():
    """n of n documents per task would vary by (n - 1) / n too little: half, at two documents per task."""
    rng = np.random.default_rng(8)
    made = strata(*[(rng.normal(size=2), rng.normal(size=2)) for _ in range(200)])
    found = np.var(stats._resampled(made, "arm"))
    wanted = sum(one.of("arm").var(ddof=1) / 2 for one in made) / 200**2
    assert found == pytest.approx(wanted, rel=0.1)


@pytest.mark.parametrize("sizes", [(1, 1, 1), (1, 5, 3), (1, 1, 4)])
def test_tasks_of_one_document_are_no_certainty(sizes):
    rng = np.random.default_rng(9)
    made = strata(*[tuple(rng.random((2, size))) for size in sizes])
    joined = stats.collapsed(made, ("arm", "base"))
    assert min(map(len, joined)) > 1
    for name in ("arm", "base"):
        assert sum(one.of(name).mean() for one in joined) == pytest.approx(sum(one.of(name).mean() for one in made))
    found = intervals.difference(made, "arm", "base")
    assert found.low < found.value < found.high


def test_one_document_says_nothing():
    made = strata(([0.5], [0.25]))
    found = intervals.difference(made, "arm", "base")
    assert (found.low, found.high) == (-1.0, 1.0)
    assert stats.accuracy(made, "arm").low == 0 and stats.accuracy(made, "arm").high == 1
    assert p_value(([0.5], [0.25])) == 1 and significance.detectable(made, "arm", "base") is None


def test_the_same_records_give_the_same_numbers_whatever_else_runs():
    base, other = shares(30)
    with_third = strata((base, other, base[::-1]))
    alone = strata((base, other))
    assert stats.accuracy(with_third, "arm") == stats.accuracy(alone, "arm")
    assert intervals.difference(with_third, "arm", "base") == intervals.difference(alone, "arm", "base")
    assert significance.paired_test(with_third, "arm", "base") == significance.paired_test(alone, "arm", "base")


@pytest.mark.parametrize("value", [0, 1])
def test_no_certainty_at_the_edges(value):
    found = stats.accuracy(strata((np.full(20, value), np.zeros(20))), "base")
    assert found.method == "wilson" and found.high - found.low > 0.1


def test_equal_arms_are_not_certain_to_be_equal():
    scores = np.ones(20)
    found = difference((scores, scores))
    assert found.value == 0 and found.low < -0.1 and found.high > 0.1
    assert p_value((scores, scores)) == 1
    assert significance.detectable(strata((scores, scores)), "arm", "base") == pytest.approx(0.366, abs=0.001)


def test_the_method_follows_the_scores():
    """Right or wrong is exact, unless documents weigh unequally; shares are resampled."""
    binary, half = np.arange(20) % 2, np.arange(20) / 20
    assert stats.accuracy(strata((binary, half)), "base").method == "wilson"
    assert stats.accuracy(strata((binary, half)), "arm").method == "bootstrap"
    tests = [
        significance.paired_test(strata(*tasks), "arm", "base").name
        for tasks in (
            [(binary, binary[::-1])],
            [(binary, half)],
            [(binary, binary[::-1])] * 2,
            [(binary, binary[::-1]), (binary[:5], binary[:5])],
        )
    ]
    assert tests == ["exact McNemar", "paired bootstrap", "exact McNemar", "paired bootstrap"]


def test_holm_is_what_the_textbook_says():
    assert significance.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert significance.holm([0.9, 0.8]) == [1.0, 1.0] and significance.holm([]) == []
    assert significance.holm([0.04]) == [0.04]


def test_power_is_the_sum_over_all_outcomes():
    """Against every table of lost and won documents, one by one."""
    documents, lost, won = 12, 0.5, 0.1
    found = 0.0
    for down in range(documents + 1):
        for up in range(documents + 1 - down):
            chance = scipy_stats.multinomial.pmf([down, up, documents - down - up], documents, [lost, won, 0.4])
            found += chance * (significance.mcnemar(down, up) < significance.ALPHA)
    assert significance.mcnemar_power(documents, lost, won) == pytest.approx(found, abs=1e-6)


def test_a_hundred_documents_find_ten_points_mostly_and_five_points_rarely():
    """The rule of thumb is .84 and .28; the exact test gives these when one document in a hundred is won back."""
    assert significance.mcnemar_power(100, 0.11, 0.01) == pytest.approx(0.84, abs=0.015)
    assert significance.mcnemar_power(100, 0.06, 0.01) == pytest.approx(0.28, abs=0.04)


def test_what_is_detectable_shrinks_with_documents_and_grows_with_discordance():
    sizes = [significance.mcnemar_detectable(count, count // 10) for count in (20, 100, 1000, 14_000)]
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] < 0.01
    assert significance.mcnemar_detectable(100, 40) > significance.mcnemar_detectable(100, 10)
    assert significance.detectable(strata((np.ones(5), np.zeros(5))), "arm", "base") is None  # 2 / 2 ** 5 > 0.05


def test_a_single_seed_has_no_spread():
    assert stats.between_seed_sd([0.5]) is None
    assert stats.between_seed_sd([0.4, 0.6]) == pytest.approx(0.1414, abs=1e-3)


def test_seeds_vary_more_only_beyond_what_documents_explain():
    assert stats.seeds_vary_more([0.2, 0.8, 0.5], sampling_sd=0.02)
    assert not stats.seeds_vary_more([0.49, 0.52, 0.5], sampling_sd=0.02)
    assert not stats.seeds_vary_more([1.0, 1.0], sampling_sd=0.0)
    rng = np.random.default_rng(10)
    answers = rng.random((400, 100, 3)) < 0.5  # noise: [runs, documents, seeds]
    flagged = [
        stats.seeds_vary_more(one.mean(axis=0), float(one.mean(axis=1).std() / 10)) for one in answers.astype(float)
    ]
    assert 0.01 < np.mean(flagged) < 0.09
