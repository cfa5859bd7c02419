"""The statistics of the stage select: a race of recipes over seeds. Pure functions.

Model: the objective of recipe i with seed s is y_is = m + a_i + b_s + e_is. The recipes' effects a_i are normal with
standard deviation `between_sd`, the residuals e_is with `residual_sd`; the seeds' effects b_s are fixed.

Shapes: I recipes, S seeds, C candidates asked for, G ratios of variances.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

LOG_RATIOS = np.linspace(-6, 6, 49)
"""Decadic logarithms of the ratios of the variances that are tried first."""
THRESHOLD = 0.95
"""Posterior probability of being below the leader above which a recipe leaves the race."""
SMALLEST_STEP = 1e-5
"""Step of the logarithms at which the search for the best ratio ends."""
DECIMALS = 12
"""Posterior means that agree in so many decimals are equal: only the order of a sum differs."""


@dataclass(frozen=True)
class Posterior:
    """The posterior distribution of the means of recipes, larger is better; normal, in the objective's unit.

    Attributes:
        keys: The recipes, in the order in which they were asked for.
        mean_C: Posterior means: common mean plus recipe effect, averaged over the effects of all seeds.
        covariance_CC: Their posterior covariance, with the uncertainty of the fixed effects.
        between_sd: Standard deviation between recipes.
        residual_sd: Standard deviation of one training around the sum of recipe and seed effect.
    """

    keys: tuple[str, ...]
    mean_C: np.ndarray
    covariance_CC: np.ndarray
    between_sd: float
    residual_sd: float

    def mean(self, key: str) -> float:
        """Return the posterior mean of a recipe."""
        return float(self.mean_C[self.keys.index(key)])

    def sd(self, key: str) -> float:
        """Return the posterior standard deviation of a recipe's mean."""
        place = self.keys.index(key)
        return math.sqrt(max(0.0, self.covariance_CC[place, place]))

    def below(self, key: str, other: str) -> float:
        """Return the posterior probability that the mean of `key` is below that of `other`."""
        i, j = self.keys.index(key), self.keys.index(other)
        difference = round(float(self.mean_C[j] - self.mean_C[i]), DECIMALS)
        variance = self.covariance_CC[i, i] + self.covariance_CC[j, j] - 2 * self.covariance_CC[i, j]
        if variance <= 10.0 ** (-2 * DECIMALS):
            return 0.5 if difference == 0 else float(difference > 0)
        return float(norm.cdf(difference / math.sqrt(variance)))


class _Fits:
    """The mixed model at G ratios of the variances, `between_sd**2 / residual_sd**2`.

    The covariance of a recipe's n values, in units of the residual variance, is I + ratio * 11'. Its inverse is
    I - weight * 11' with weight = ratio / (1 + n * ratio), so no matrix is larger than S x S.
    """

    def __init__(self, value_IS: np.ndarray, has_IS: np.ndarray, ratio_G: np.ndarray) -> None:
        count_I = has_IS.sum(1)
        self.ratio_G = ratio_G
        self.weight_GI = ratio_G[:, None] / (1 + ratio_G[:, None] * count_I)
        weighted_GIS = self.weight_GI[:, :, None] * has_IS
        precision_GSS = np.diag(has_IS.sum(0)) - has_IS.T @ weighted_GIS
        self.covariance_GSS = np.linalg.inv(precision_GSS)
        right_GS = value_IS.sum(0) - value_IS.sum(1) @ weighted_GIS
        self.effect_GS = (self.covariance_GSS @ right_GS[:, :, None])[:, :, 0]
        residual_GIS = (value_IS - self.effect_GS[:, None]) * has_IS
        self.residual_sum_GI = residual_GIS.sum(2)
        squares_G = (residual_GIS**2).sum((1, 2)) - (self.weight_GI * self.residual_sum_GI**2).sum(1)
        freedom = int(count_I.sum()) - has_IS.shape[1]
        self.residual_variance_G = np.maximum(0, squares_G) / max(1, freedom)
        determinants_G = np.log1p(ratio_G[:, None] * count_I).sum(1) + np.linalg.slogdet(precision_GSS)[1]
        # -2 times the restricted log-likelihood, up to a constant, at the best residual variance
        self.deviance_G = freedom * np.log(np.maximum(self.residual_variance_G, 1e-300)) + determinants_G


def posterior(values: Mapping[str, Mapping[int, float]], keys: Sequence[str]) -> Posterior:
    """Return the posterior of the means of the recipes `keys`.

    The two variances are estimated by restricted maximum likelihood (Patterson and Thompson 1971, Biometrika 58) with a
    weak prior; the recipes' effects are best linear unbiased predictions (Henderson 1975, Biometrics 31). So a value
    that was selected on is shrunk towards the common mean, the more the fewer seeds its recipe has.

    Args:
        values: The objective by recipe and seed, larger is better: all complete trials of the search and all trainings
            of the race. Leave recipes out that have diverged.
        keys: Recipes of `values`.
    """
    recipes = {key: row for row, key in enumerate(values)}
    seeds = {seed: column for column, seed in enumerate(sorted({seed for own in values.values() for seed in own}))}
    value_IS, has_IS = np.zeros((2, len(recipes), len(seeds)))
    for key, own in values.items():
        for seed, value in own.items():
            value_IS[recipes[key], seeds[seed]], has_IS[recipes[key], seeds[seed]] = value, 1.0
    center = value_IS.sum() / has_IS.sum()
    scale = float(np.abs((value_IS - center) * has_IS).max()) or 1.0  # so that nothing depends on the objective's unit
    value_IS = (value_IS - center) / scale * has_IS
    fit = _Fits(value_IS, has_IS, np.array([_best_ratio(value_IS, has_IS)]))
    rows = [recipes[key] for key in keys]
    weight_C = fit.weight_GI[0, rows]
    mean_C = fit.effect_GS[0].mean() + weight_C * fit.residual_sum_GI[0, rows]
    slope_CS = 1 / len(seeds) - weight_C[:, None] * has_IS[rows]  # of the means on the seeds' effects
    covariance_CC = np.diag(weight_C) + slope_CS @ fit.covariance_GSS[0] @ slope_CS.T
    residual_sd = math.sqrt(fit.residual_variance_G[0]) * scale
    return Posterior(
        keys=tuple(keys),
        mean_C=center + scale * mean_C,
        covariance_CC=residual_sd**2 * covariance_CC,
        between_sd=math.sqrt(fit.ratio_G[0]) * residual_sd,
        residual_sd=residual_sd,
    )


def _best_ratio(value_IS: np.ndarray, has_IS: np.ndarray) -> float:
    """Return the ratio of the variances that is best by restricted likelihood and prior, on ever narrower grids.

    The prior density of the share p = between_sd**2 / (between_sd**2 + residual_sd**2) is 6 p (1 - p). Restricted
    likelihood alone puts one of the two at 0 in a tenth of the races, which then choose at random (a remedy of Chung et
    al. 2013, Psychometrika 78). If no recipe has a second value, the data do not tell the share, and it is 1/2.
    """
    ratio_G, step = 10.0**LOG_RATIOS, LOG_RATIOS[1] - LOG_RATIOS[0]
    while True:
        share_G = ratio_G / (1 + ratio_G)
        prior_G = np.log(share_G) + np.log(1 - share_G)
        best = float(ratio_G[np.argmin(_Fits(value_IS, has_IS, ratio_G).deviance_G - 2 * prior_G)])
        if step < SMALLEST_STEP:
            return best
        ratio_G, step = best * 10 ** np.linspace(-step, step, 21), step / 10


def leader(posterior: Posterior, in_race: Sequence[str], ties: Mapping[str, tuple[float, ...]]) -> str:
    """Return the recipe of the highest posterior mean; among equal ones that of the smallest key in `ties`."""
    return min(in_race, key=lambda key: (-round(posterior.mean(key), DECIMALS), ties[key]))


def to_drop(posterior: Posterior, in_race: Sequence[str], leader: str, threshold: float = THRESHOLD) -> list[str]:
    """Return the recipes whose posterior probability of being below the leader is above the threshold."""
    return [key for key in in_race if key != leader and posterior.below(key, leader) > threshold]


def next_round(
    posterior: Posterior,
    in_race: Sequence[str],
    ties: Mapping[str, tuple[float, ...]],
    left: int,
    threshold: float = THRESHOLD,
) -> list[str]:
    """Return the recipes that stay in the race after a round: the leader alone at its end.

    Those of `to_drop` leave. The next round trains at most a third of the trainings that are `left`, but at least two,
    so those of the lowest posterior means leave too: the last trainings compare the few that may be the best.
    """
    first = leader(posterior, in_race, ties)
    dropped = to_drop(posterior, in_race, first, threshold)
    ranked = sorted(in_race, key=lambda key: (-round(posterior.mean(key), DECIMALS), ties[key]))
    staying = [key for key in ranked if key not in dropped][: max(2, left // 3) if left > 1 else 1]
    return [key for key in in_race if key in staying]


def best_probabilities(posterior: Posterior, seed: int, draws: int = 10_000) -> dict[str, float]:
    """Return, for each recipe, the share of draws from the posterior in which its mean is the highest."""
    variance_C, axis_CC = np.linalg.eigh(posterior.covariance_CC)
    root_CC = axis_CC * np.sqrt(np.maximum(0, variance_C)) @ axis_CC.T  # symmetric, so it is the only one
    standard_NC = np.random.default_rng(seed).standard_normal((draws, len(posterior.keys)))
    drawn_NC = posterior.mean_C + standard_NC @ root_CC
    is_best_NC = np.round(drawn_NC, DECIMALS) == np.round(drawn_NC.max(1, keepdims=True), DECIMALS)
    shares_C = (is_best_NC / is_best_NC.sum(1, keepdims=True)).mean(0)
    return {key: float(share) for key, share in zip(posterior.keys, shares_C, strict=True)}
