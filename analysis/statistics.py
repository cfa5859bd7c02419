"""Intervals and tests over S seeds and N test images: pure functions on fractions, no bootstrap over seeds.

None means that there is no interval.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

LEVEL = 0.95
SEEDS_FOR_A_CLAIM = 3
NO_SPREAD = 1e-12  # accuracies differ by at least 1/N; smaller differences are rounding of floats


@dataclass(frozen=True)
class Interval:
    low: float
    high: float

    @property
    def contains_zero(self) -> bool:
        return self.low <= 0 <= self.high


@dataclass(frozen=True)
class Estimate:
    """A mean over n runs; half_width is None if n runs give no interval (n < 2, or all of them equal).

    There is none either while `broken` further runs are to be repeated, or if `diverged` runs have a non-finite loss.
    """

    mean: float
    half_width: float | None
    n: int
    broken: int = 0
    diverged: int = 0

    @property
    def interval(self) -> Interval | None:
        return None if self.half_width is None else Interval(self.mean - self.half_width, self.mean + self.half_width)

    @property
    def decided(self) -> bool:
        """True if there are at least three runs and an interval without 0; only such estimates are printed in bold."""
        return self.n >= SEEDS_FOR_A_CLAIM and self.interval is not None and not self.interval.contains_zero


def mean_estimate(values: Sequence[float], broken: int = 0, diverged: int = 0) -> Estimate | None:
    """Return the mean with its t interval (Student 1908): mean +/- t(0.975, n-1) s / sqrt(n), s with n-1.

    Equal values have s = 0, an interval of width 0: they get no interval. No values give None. `broken` and `diverged`
    are the numbers of runs without a value that are to be repeated, and whose loss became non-finite.
    """
    n = len(values)
    if n == 0:
        return None
    mean = float(np.mean(values))
    spread = float(np.std(values, ddof=1)) if n > 1 else 0.0
    if spread <= NO_SPREAD or broken or diverged:
        return Estimate(mean, None, n, broken, diverged)
    return Estimate(mean, float(stats.t.ppf((1 + LEVEL) / 2, n - 1)) * spread / n**0.5, n)


def paired_differences(first: Mapping[int, float], second: Mapping[int, float]) -> list[float]:
    """Return first - second for each common seed, by ascending seed."""
    return [first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())]


def paired_p_value(differences: Sequence[float]) -> float | None:
    """Return p of the two-sided paired t test (Student 1908, n-1 degrees of freedom), None if there is no interval."""
    estimate = mean_estimate(differences)
    if estimate is None or estimate.half_width is None:
        return None
    return float(stats.ttest_1samp(differences, 0.0).pvalue)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return step-down adjusted p values (Holm 1979, Scand. J. Statist. 6, 65-70); None is not part of the family."""
    known = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, index) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        adjusted[index] = largest
    return adjusted


def clopper_pearson(successes: int, n: int) -> Interval | None:
    """Return the exact binomial interval of one run on n images (Clopper and Pearson 1934, Biometrika 26, 404-413)."""
    if n < 1:
        return None
    tail = (1 - LEVEL) / 2
    low = stats.beta.ppf(tail, successes, n - successes + 1) if successes > 0 else 0.0
    high = stats.beta.ppf(1 - tail, successes + 1, n - successes) if successes < n else 1.0
    return Interval(float(low), float(high))


def bootstrap_over_images(
    first_SN: ArrayLike, second_SN: ArrayLike, *, resamples: int = 10_000, seed: int = 0
) -> Interval | None:
    """Return the percentile interval of mean(first - second) (Efron 1979); images are resampled, seeds averaged.

    first_SN, second_SN: right (1) or wrong (0) for each of S seeds and N images.
    """
    difference_N = np.asarray(first_SN, float).mean(axis=0) - np.asarray(second_SN, float).mean(axis=0)
    n_images = difference_N.size
    if n_images < 2:
        return None
    # the difference of an image takes few values, so a resample is one multinomial draw of their counts
    values, counts = np.unique(difference_N.round(12), return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(n_images, counts / n_images, size=resamples)
    low, high = np.quantile(drawn @ values / n_images, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high))
