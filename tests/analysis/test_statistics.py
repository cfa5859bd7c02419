"""Against scipy, or against a slow oracle written here."""

import numpy as np
import pytest
from scipy import stats

from analysis.statistics import (
    Estimate,
    Interval,
    bootstrap_over_images,
    clopper_pearson,
    holm,
    mean_estimate,
    paired_differences,
    paired_p_value,
)


@pytest.mark.parametrize("n", [2, 3, 5, 10])
def test_t_interval_equals_scipys(n: int) -> None:
    values = np.random.default_rng(n).normal(0.95, 0.01, n)
    estimate = mean_estimate(list(values))
    assert estimate is not None
    assert estimate.interval is not None
    low, high = stats.t.interval(0.95, n - 1, loc=values.mean(), scale=stats.sem(values))
    assert (estimate.interval.low, estimate.interval.high) == pytest.approx((low, high))
    assert estimate.n == n


def test_one_value_and_equal_values_have_a_mean_but_no_interval() -> None:
    assert mean_estimate([]) is None
    assert mean_estimate([0.9]) == Estimate(0.9, None, 1)
    rounding = [0.97 - 0.95, 0.96 - 0.94, 0.95 - 0.93]  # 0.02 three times, but for the last bits
    assert len(set(rounding)) > 1
    estimate = mean_estimate(rounding)
    assert estimate is not None
    assert estimate.interval is None
    assert not estimate.decided


def test_differences_are_paired_by_seed_whatever_the_order_and_lone_seeds_are_left_out() -> None:
    first, second = {3: 0.9, 1: 0.8, 2: 0.7}, {1: 0.5, 3: 0.1, 4: 0.3}
    assert paired_differences(first, second) == pytest.approx([0.3, 0.8])


def test_p_value_equals_scipys_paired_t_test() -> None:
    chance = np.random.default_rng(1)
    first, second = chance.normal(0.02, 0.01, 6), chance.normal(0.0, 0.01, 6)
    assert paired_p_value(list(first - second)) == pytest.approx(stats.ttest_rel(first, second).pvalue)
    assert paired_p_value([0.1]) is None


def test_decided_needs_three_runs_and_an_interval_without_zero() -> None:
    decided = [Estimate(0.02, 0.01, 3), Estimate(-0.02, 0.01, 3)]
    undecided = [Estimate(0.02, 0.01, 2), Estimate(0.02, 0.02, 5), Estimate(0.02, None, 5)]
    assert [each.decided for each in [*decided, *undecided]] == [True] * 2 + [False] * 3


def test_holm_equals_the_step_down_procedure_at_every_level() -> None:
    """Oracle: Holm's own test, level by level; an adjusted p is the smallest level that rejects."""

    def rejects(p_values: list[float], level: float) -> set[int]:
        rejected: set[int] = set()
        for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
            if p_values[index] > level / (len(p_values) - rank):
                break
            rejected.add(index)
        return rejected

    for seed in range(20):
        p_values = [float(p) for p in np.random.default_rng(seed).uniform(0, 0.2, 5)]
        adjusted = holm(p_values)
        for level in np.linspace(0.001, 0.999, 97):
            assert rejects(p_values, level) == {i for i, p in enumerate(adjusted) if p is not None and p <= level}


def test_holm_leaves_an_unknown_p_out_of_the_family() -> None:
    assert holm([0.02, None, 0.03]) == [0.04, None, 0.04]
    assert holm([None]) == [None]


@pytest.mark.parametrize(("successes", "n"), [(0, 20), (20, 20), (7, 20), (355, 360), (9_913, 10_000)])
def test_clopper_pearson_equals_scipys_exact_interval(successes: int, n: int) -> None:
    interval = clopper_pearson(successes, n)
    expected = stats.binomtest(successes, n).proportion_ci(0.95, method="exact")
    assert interval is not None
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high))
    assert clopper_pearson(0, 0) is None


def test_bootstrap_equals_drawing_images_one_by_one() -> None:
    chance = np.random.default_rng(2)
    first_SN, second_SN = chance.uniform(size=(5, 300)) < 0.95, chance.uniform(size=(5, 300)) < 0.92
    difference_N = first_SN.mean(axis=0) - second_SN.mean(axis=0)
    slow = [difference_N[chance.integers(0, 300, 300)].mean() for _ in range(10_000)]
    interval = bootstrap_over_images(first_SN, second_SN)
    assert interval is not None
    assert (interval.low, interval.high) == pytest.approx(tuple(np.quantile(slow, [0.025, 0.975])), abs=1e-3)


def test_bootstrap_knows_images_not_seeds() -> None:
    """The same seeds counted ten times are no new evidence: the interval stays."""
    chance = np.random.default_rng(3)
    first_SN, second_SN = chance.uniform(size=(2, 200)) < 0.95, chance.uniform(size=(2, 200)) < 0.9
    ten_times = bootstrap_over_images(np.tile(first_SN, (10, 1)), np.tile(second_SN, (10, 1)))
    assert bootstrap_over_images(first_SN, second_SN) == ten_times
    assert bootstrap_over_images([[1]], [[0]]) is None
    assert bootstrap_over_images([[1, 1, 0]], [[1, 1, 0]]) == Interval(0.0, 0.0)
