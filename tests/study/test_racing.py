"""The race's statistics, compared with dense references that write the whole covariance matrix down."""

import itertools
import math

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import multivariate_normal, norm

from kdtrain.study.racing import (
    Posterior,
    best_probabilities,
    leader,
    next_round,
    posterior,
    to_drop,
)

Values = dict[str, dict[int, float]]


def made_up(
    recipes: int, raced: int, rounds: int, *, between: float = 1.0, residual: float = 1.0, seed: int = 0
) -> Values:
    """A search of one seed, and rounds of fresh seeds of its best recipes."""
    random = np.random.default_rng(seed)
    means = random.normal(0, between, recipes)
    effects = random.normal(0, 0.5, rounds + 1)
    values = {f"search {i}": {0: means[i] + effects[0] + random.normal(0, residual)} for i in range(recipes)}
    for key in sorted(values, key=lambda key: -values[key][0])[:raced]:
        for s in range(1, rounds + 1):
            values[key][100 + s] = means[int(key.split()[1])] + effects[s] + random.normal(0, residual)
    return values


class Dense:
    """The same mixed model with the covariance matrix of all values."""

    def __init__(self, values: Values) -> None:
        rows = [(key, seed, value) for key, own in values.items() for seed, value in own.items()]
        self.keys, seeds = list(values), sorted({seed for _, seed, _ in rows})
        self.y = np.array([value for *_, value in rows])
        self.X = np.array([[seed == other for other in seeds] for _, seed, _ in rows], float)
        self.Z = np.array([[key == other for other in self.keys] for key, *_ in rows], float)

    def parts(self, between: float, residual: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        inverse = np.linalg.inv(between**2 * self.Z @ self.Z.T + residual**2 * np.eye(len(self.y)))
        C = np.linalg.inv(self.X.T @ inverse @ self.X)
        return inverse, C, C @ self.X.T @ inverse @ self.y

    def deviance(self, between: float, residual: float) -> float:
        inverse, C, effects = self.parts(between, residual)
        rest = self.y - self.X @ effects
        share = between**2 / (between**2 + residual**2)
        prior = share * (1 - share)
        return -np.linalg.slogdet(inverse)[1] - np.linalg.slogdet(C)[1] + rest @ inverse @ rest - 2 * math.log(prior)

    def means(self, between: float, residual: float) -> tuple[np.ndarray, np.ndarray]:
        """Best linear unbiased predictions of all recipes' means, and the covariance of their errors."""
        inverse, C, effects = self.parts(between, residual)
        A = between**2 * self.Z.T @ inverse
        average = np.full((len(self.keys), self.X.shape[1]), 1 / self.X.shape[1])
        slope = average - A @ self.X
        covariance = between**2 * np.eye(len(self.keys)) - between**2 * A @ self.Z + slope @ C @ slope.T
        return average @ effects + A @ (self.y - self.X @ effects), covariance


@pytest.mark.parametrize(("raced", "rounds", "seed"), [(3, 1, 0), (3, 2, 1), (5, 4, 2), (12, 2, 3)])
def test_means_and_covariance_are_those_of_the_whole_matrix(raced: int, rounds: int, seed: int) -> None:
    values = made_up(12, raced, rounds, seed=seed)
    keys = sorted(values, key=lambda key: -len(values[key]))[:raced]
    found, dense = posterior(values, keys), Dense(values)
    mean, covariance = dense.means(found.between_sd, found.residual_sd)
    rows = [dense.keys.index(key) for key in keys]
    assert found.keys == tuple(keys)
    assert found.mean_C == pytest.approx(mean[rows], abs=1e-9)
    assert found.covariance_CC == pytest.approx(covariance[np.ix_(rows, rows)], abs=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_the_variances_have_the_highest_restricted_likelihood_times_prior(seed: int) -> None:
    values = made_up(15, 6, 3, seed=seed)
    found, dense = posterior(values, ["search 0"]), Dense(values)
    best = minimize(lambda sds: dense.deviance(*np.exp(sds)), (0, 0), method="Nelder-Mead", options={"xatol": 1e-8})
    assert dense.deviance(found.between_sd, found.residual_sd) <= best.fun + 1e-6
    assert (found.between_sd, found.residual_sd) == pytest.approx(tuple(np.exp(best.x)), rel=1e-3, abs=1e-3)


def test_nothing_depends_on_the_objectives_unit_and_origin() -> None:
    values = made_up(20, 8, 3)
    scaled = {key: {seed: 1e4 + 100 * value for seed, value in own.items()} for key, own in values.items()}
    keys = list(values)[:8]
    one, other = posterior(values, keys), posterior(scaled, keys)
    assert other.mean_C == pytest.approx(1e4 + 100 * one.mean_C)
    assert other.covariance_CC == pytest.approx(1e4 * one.covariance_CC)
    assert best_probabilities(one, 0) == pytest.approx(best_probabilities(other, 0), abs=0.002)


def test_a_seed_that_is_better_for_all_favours_nobody() -> None:
    values = made_up(20, 8, 3)
    lucky = {key: {s: value + 5 * (s == 101) for s, value in own.items()} for key, own in values.items()}
    keys = [key for key in values if len(values[key]) > 1]
    one, other = posterior(values, keys), posterior(lucky, keys)
    assert other.mean_C - other.mean_C[0] == pytest.approx(one.mean_C - one.mean_C[0])


def test_a_value_that_was_selected_on_is_shrunk() -> None:
    """With equal variances, the best of 40 single values is expected to lie halfway above the common mean."""
    values = made_up(40, 40, 9)
    single = {key: {**own} if key != "new" else own for key, own in values.items()} | {"new": {0: 8.0}}
    found = posterior(single, ["new", "search 0"])
    mean = np.mean([own[0] for own in values.values()])
    assert found.residual_sd == pytest.approx(1, abs=0.2)
    assert found.mean("new") - mean < 0.8 * (8 - mean)
    assert found.sd("new") > 1.5 * found.sd("search 0")


def test_five_thousand_recipes_need_no_matrix_of_five_thousand_rows() -> None:
    values = made_up(5000, 8, 6)
    keys = [key for key in values if len(values[key]) > 1]
    found = posterior(values, keys)
    assert (found.between_sd, found.residual_sd) == pytest.approx((1, 1), abs=0.3)


def test_equal_values_have_no_spread_and_drop_nobody() -> None:
    values = {key: {0: 0.9, 1: 0.9, 2: 0.9} for key in "abc"}
    found = posterior(values, "abc")
    assert (found.between_sd, found.residual_sd) == (0, 0)
    assert found.mean_C == pytest.approx(0.9)
    assert leader(found, "abc", {"a": (0.3, 0), "b": (0.2, 9), "c": (0.2, 5)}) == "c"
    assert to_drop(found, "abc", "c") == []
    assert best_probabilities(found, 0) == pytest.approx(dict.fromkeys("abc", 1 / 3))


def test_recipes_that_differ_alike_with_every_seed_are_certain() -> None:
    values = {key: {0: mean, 1: mean + 0.1} for key, mean in zip("abcde", (0.5, 0.7, 0.1, 0.6, 0.2), strict=True)}
    found = posterior(values, "abcde")
    assert found.residual_sd == pytest.approx(0, abs=1e-3)
    assert leader(found, "abcde", dict.fromkeys("abcde", (0,))) == "b"
    assert to_drop(found, "abcde", "b") == ["a", "c", "d", "e"]
    assert best_probabilities(found, 0)["b"] == 1


@pytest.mark.parametrize("values", [{"a": {0: 1.0}, "b": {0: 3.0}}, {"a": {0: 1.0}, "b": {1: 3.0}}, {"a": {0: 1.0}}])
def test_without_a_second_value_of_any_recipe_both_variances_are_taken_as_equal(values: Values) -> None:
    found = posterior(values, list(values))
    assert found.between_sd == pytest.approx(found.residual_sd)
    assert np.isfinite(found.mean_C).all()
    assert np.isfinite(found.covariance_CC).all()
    if len(values) == 2 and 0 in values["b"]:
        assert found.mean_C == pytest.approx([1.5, 2.5], abs=1e-3)  # halfway to the mean


def test_two_recipes_with_two_seeds_each_are_enough() -> None:
    found = posterior({"a": {0: 0.90, 1: 0.93}, "b": {0: 0.80, 1: 0.85}}, ["b", "a"])
    assert found.mean("a") > found.mean("b")
    assert found.below("b", "a") == pytest.approx(1 - found.below("a", "b"))


def known(mean: list[float], covariance: list[list[float]]) -> Posterior:
    return Posterior(tuple("abc"), np.array(mean), np.array(covariance), 1.0, 1.0)


def test_a_recipe_is_dropped_if_it_is_below_the_leader_with_more_than_the_threshold() -> None:
    found = known([0, 1, 3], [[1, 0.5, 0], [0.5, 1, 0], [0, 0, 1]])
    assert found.below("a", "b") == pytest.approx(norm.cdf(1 / math.sqrt(1)))
    assert found.below("b", "c") == pytest.approx(norm.cdf(2 / math.sqrt(2)))
    assert to_drop(found, "ab", "b", 0.84) == ["a"]  # 0.841
    assert to_drop(found, "ab", "b", 0.85) == []
    assert to_drop(found, "abc", "c", 0.9) == ["a", "b"]
    assert to_drop(found, "abc", "c") == ["a"]


def test_the_leader_is_among_those_in_the_race_and_rounding_does_not_decide() -> None:
    found = known([0.3, 0.1 + 0.2, 5], np.eye(3).tolist())
    assert leader(found, ["a", "b"], {"a": (0.5, 1.0), "b": (0.5, 2.0)}) == "a"
    assert leader(found, ["a", "b"], {"a": (0.5, 3.0), "b": (0.5, 2.0)}) == "b"


def test_a_round_trains_at_most_a_third_of_what_is_left_and_at_least_two() -> None:
    found = known([0, 0.2, 0.1], np.eye(3).tolist())
    ties = dict.fromkeys("abc", (0.0,))
    assert next_round(found, "abc", ties, left=9) == ["a", "b", "c"]
    assert next_round(found, "abc", ties, left=8) == next_round(found, "abc", ties, left=2) == ["b", "c"]
    assert next_round(found, "abc", ties, left=1) == next_round(found, "abc", ties, left=0) == ["b"]
    assert next_round(found, "abc", ties, left=9, threshold=0.54) == ["b", "c"]
    assert next_round(found, ["a"], ties, left=9) == ["a"]


def test_the_probability_of_being_the_best_is_that_of_the_joint_distribution() -> None:
    """For three recipes it is an orthant probability of two differences."""
    covariance = np.array([[1, 0.6, 0.1], [0.6, 1, 0.2], [0.1, 0.2, 2]])
    mean = np.array([0.2, 0.5, 0.0])
    found = best_probabilities(known(mean.tolist(), covariance.tolist()), 7, 100_000)
    assert found == best_probabilities(known(mean.tolist(), covariance.tolist()), 7, 100_000)
    assert sum(found.values()) == pytest.approx(1)
    for i, key in enumerate("abc"):
        D = np.array([np.eye(3)[j] - np.eye(3)[i] for j in range(3) if j != i])
        exact = multivariate_normal.cdf(np.zeros(2), D @ mean, D @ covariance @ D.T)
        assert found[key] == pytest.approx(exact, abs=0.005)


def test_the_order_of_recipes_and_seeds_does_not_matter() -> None:
    values = made_up(8, 3, 2)
    turned = {key: dict(reversed(own.items())) for key, own in reversed(values.items())}
    for keys in itertools.permutations(list(values)[:3]):
        assert posterior(turned, keys).mean_C == pytest.approx(posterior(values, keys).mean_C, abs=1e-9)
