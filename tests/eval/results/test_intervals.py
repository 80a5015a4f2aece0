"""Laws of the intervals of differences: they agree with their tests at every level, hold what they promise, and are
never of no width.
"""

import numpy as np
import pytest
from scipy import stats as scipy_stats

from sa_eval.results import intervals, significance, stats
from sa_eval.results.cells import Pair, corrected

ROUNDING = 1e-12


def strata(*by_task, name="task"):
    """Tasks as (base scores, arm scores)."""
    return [
        stats.Stratum(f"{name} {position}", ("base", "arm"), np.stack(columns, axis=1).astype(float))
        for position, columns in enumerate(by_task)
    ]


def binary(documents, lost, won):
    """Documents of which so many are lost and won, the others alike."""
    scores = np.ones((2, documents))
    scores[1, :lost] = 0
    scores[0, lost : lost + won] = 0
    return strata(tuple(scores))


def shares(rng, documents, drop, seeds=3):
    """One answer against the mean of several, whose chance is lower by `drop`."""
    chance = rng.beta(6, 1.5, documents)
    return rng.binomial(1, chance), rng.binomial(seeds, np.clip(chance - drop, 0, 1)) / seeds


def excludes_zero(found):
    return not found.low <= 0 <= found.high


@pytest.mark.parametrize("alpha", [0.05, 0.003, 0.00005])
@pytest.mark.parametrize("documents", [4, 6, 12, 30, 100])
def test_zero_lies_outside_exactly_where_the_exact_test_is_below_the_level(documents, alpha):
    for lost in range(0, documents + 1, 1 + documents // 15):
        for won in range(0, documents - lost + 1, 1 + documents // 15):
            found = intervals.difference(binary(documents, lost, won), "arm", "base", alpha)
            assert excludes_zero(found) == (significance.mcnemar(lost, won) < alpha)
            assert found.low <= found.value + ROUNDING and found.value <= found.high + ROUNDING
            assert found.high - found.low > 0.001


@pytest.mark.parametrize("alpha", [0.05, 0.003, 0.00005])  # the last is below what 10,000 draws resolve
@pytest.mark.parametrize("tasks", [[8], [40], [200], [4, 4, 4], [12] * 5, [3, 30]])
def test_zero_lies_outside_exactly_where_random_signs_are_below_the_level(tasks, alpha):
    rng = np.random.default_rng(21)
    verdicts = set()
    for run, drop in enumerate((0, 0.05, 0.1, 0.2, 0.35, 0.6)):
        made = strata(*(shares(rng, documents, drop) for documents in tasks), name=str(run))
        found = intervals.difference(made, "arm", "base", alpha)
        verdicts.add(excludes_zero(found))
        assert excludes_zero(found) == (significance.paired_test(made, "arm", "base").p_value < alpha)
        assert found.low <= found.value <= found.high and found.high - found.low > 0.001
    if sum(tasks) > 50:
        assert verdicts == {True, False}


def test_an_interval_seen_from_the_other_arm_is_mirrored():
    rng = np.random.default_rng(22)
    for made in (strata(shares(rng, 30, 0.1), shares(rng, 30, 0.3)), binary(40, 9, 3)):
        for alpha in (0.05, 0.00005):
            one, other = (intervals.difference(made, *arms, alpha) for arms in (("arm", "base"), ("base", "arm")))
            assert (one.low, one.high) == pytest.approx((-other.high, -other.low), abs=1e-4)


@pytest.mark.parametrize(
    ("base", "arm"),
    [
        (np.ones(4), np.repeat([0, 1], 2)),  # 4 documents, two of them lost
        (np.ones(9), np.repeat([0, 1, 0], 3)),
        (np.ones(9), np.full(9, 2 / 3)),  # every document differs alike
        (np.ones(30), np.full(30, 2 / 3)),
        (np.full(30, 0.5), np.full(30, 0.5)),
    ],
)
def test_no_interval_has_no_width(base, arm):
    by_thirds = list(zip(np.split(base, 3), np.split(arm, 3), strict=True)) if len(base) % 3 == 0 else [(base, arm)]
    for made in (strata((base, arm)), strata(*by_thirds)):
        found = intervals.difference(made, "arm", "base")
        assert found.high - found.low > 0.02
        assert excludes_zero(found) == (significance.paired_test(made, "arm", "base").p_value < 0.05)
        own = stats.accuracy(made, "arm")
        assert own.high - own.low > 0.02


@pytest.mark.parametrize("alpha", [0.05, 0.001])
def test_with_fewer_documents_than_the_fewest_nothing_is_ever_significant(alpha):
    fewest = significance.fewest_documents(alpha)
    assert significance.mcnemar(fewest, 0) < alpha <= significance.mcnemar(fewest - 1, 0)
    few = strata((np.ones(fewest - 1), np.linspace(0, 0.5, fewest - 1)))
    assert significance.paired_test(few, "arm", "base").p_value >= alpha
    found = intervals.difference(few, "arm", "base", alpha)
    assert (found.low, found.high) == (-1, 1)


@pytest.mark.parametrize("documents", [12, 30, 100])
@pytest.mark.parametrize(("lost", "won"), [(0.05, 0.02), (0.3, 0.02), (0.3, 0.2), (0.7, 0.0), (0.9, 0.05)])
def test_intervals_of_right_and_wrong_hold_the_truth_as_often_as_promised(documents, lost, won):
    rng = np.random.default_rng(23)
    tables = rng.multinomial(documents, [lost, won, 1 - lost - won], size=1500)
    kinds, counts = np.unique(tables[:, :2], axis=0, return_counts=True)
    ends = [intervals._exact(documents, int(down), int(up), 0.05) for down, up in kinds]
    held = [low - ROUNDING <= won - lost <= high + ROUNDING for low, high in ends]
    assert counts @ held / 1500 >= 0.95


@pytest.mark.parametrize("tasks", [[12], [40], [4] * 3, [12] * 5])
def test_intervals_of_shares_hold_the_truth_as_often_as_promised(monkeypatch, tasks):
    monkeypatch.setattr(stats, "RESAMPLES", 399)
    rng, runs = np.random.default_rng(24), 250
    drops = np.resize([0.0, 0.2, 0.5], len(tasks))
    chance = np.random.default_rng(0).beta(6, 1.5, 200_000)
    truth = np.mean([(np.clip(chance - drop, 0, 1) - chance).mean() for drop in drops])
    held = 0
    for run in range(runs):
        made = strata(*(shares(rng, count, drop) for count, drop in zip(tasks, drops, strict=True)), name=str(run))
        found = intervals.difference(made, "arm", "base")
        held += found.low <= truth <= found.high
    assert held / runs >= 0.95 - 2 * (0.05 * 0.95 / runs) ** 0.5


def test_the_corrected_interval_is_the_verdict():
    """Over a family of tests: Holm's verdict, and 0 outside the interval at the level that Holm leaves, are one."""
    rng = np.random.default_rng(25)
    pairs = {}
    for drop in np.repeat([0, 0.1, 0.2, 0.3, 0.5], 8):
        made = strata(shares(rng, 60, drop), name=f"{len(pairs)}")
        pairs[len(pairs)] = Pair(made, "arm", "base")
    found, family = corrected(pairs)
    assert family.tests == 40
    assert {row.significant for row in found.values()} == {True, False}
    assert any(row.p_value < 0.05 <= row.p_adjusted for row in found.values())  # where the plain interval would mislead
    count = sum(row.significant for row in found.values())
    assert family.level == pytest.approx(0.05 / (40 - count))
    for row in found.values():
        assert row.significant == (not row.corrected_low <= 0 <= row.corrected_high) == (row.p_adjusted < 0.05)
        assert row.corrected_low <= row.low <= row.value <= row.high <= row.corrected_high


def test_the_level_is_what_holm_leaves():
    for count in (1, 2, 5, 40):
        rng = np.random.default_rng(count)
        p_values = list(rng.random(count) ** 4)
        significant = [value < 0.05 for value in significance.holm(p_values)]
        level = significance.level(p_values)
        assert significant == [value < level for value in p_values]


def test_a_detectable_difference_is_larger_at_a_stricter_level():
    rng = np.random.default_rng(26)
    for made in (strata(shares(rng, 80, 0.1)), binary(80, 10, 4)):
        sizes = [significance.detectable(made, "arm", "base", alpha) for alpha in (0.05, 0.001)]
        assert sizes[0] < sizes[1]
    assert significance.detectable(binary(10, 3, 0), "arm", "base", 0.001) is None


def test_the_exact_interval_is_clopper_and_pearsons_where_every_document_differs():
    found = intervals.difference(binary(20, 15, 5), "arm", "base")
    wanted = scipy_stats.binomtest(5, 20).proportion_ci(0.95, method="exact")
    assert found.low == pytest.approx(2 * wanted.low - 1) and found.high <= 2 * wanted.high - 1 + 0.15
