"""The front of a trade-off, its bands of costs and the recipes that are confirmed, on made-up trials."""

import random
from collections.abc import Sequence

import pytest

from kdtrain.config.teacher import Student
from kdtrain.study.front import Costs, bands, front, front_candidates, spread
from kdtrain.study.selection import SearchedTrial


def costs_of(*costs: float) -> Costs:
    return Costs(("student",), {(("student", str(cost)),): cost for cost in costs})


def trial(number: int, cost: float, value: float | None, nll: float = 1.0, stage: str = "search") -> SearchedTrial:
    key = None if value is None else (value, -nll)
    values = {"student": str(cost), "lr": 0.1 * number}
    return SearchedTrial(stage, number, f"{stage}{number}", values, Student(model="lenet5_student"), key)


def numbers(points: Sequence[SearchedTrial]) -> list[int]:
    return [point.number for point in points]


def dominates(one: SearchedTrial, other: SearchedTrial, costs: Costs) -> bool:
    """Slow reference: at least as good in both, and better in one, or equal in both and first in the ranking."""
    assert one.ranking_key is not None
    assert other.ranking_key is not None
    cheap, good = costs.of(one.values) - costs.of(other.values), one.ranking_key[0] - other.ranking_key[0]
    if cheap == good == 0:
        return (-one.ranking_key[1], one.number) < (-other.ranking_key[1], other.number)
    return cheap <= 0 and good >= 0


@pytest.mark.parametrize("seed", range(20))
def test_the_front_has_the_trials_that_no_other_one_dominates(seed: int) -> None:
    drawn = random.Random(seed)
    costs = costs_of(1, 2, 5, 9)
    trials = [
        trial(number, drawn.choice((1, 2, 5, 9)), drawn.choice((None, 0.5, 0.6, 0.7, 0.8)), drawn.choice((1.0, 2.0)))
        for number in range(15)
    ]
    complete = [each for each in trials if each.ranking_key is not None]
    expected = [each for each in complete if not any(dominates(other, each, costs) for other in complete)]
    found = front(trials, costs)
    assert sorted(numbers(found)) == sorted(numbers(expected))
    assert [costs.of(point.values) for point in found] == sorted(costs.of(point.values) for point in found)


@pytest.mark.parametrize(
    ("most", "expected"), [(2, [1, 10]), (3, [1, 5, 10]), (4, [1, 4, 7, 10]), (9, [1, 2, 3, 4, 5, 7, 8, 9, 10])]
)
def test_points_are_evenly_spread_by_cost_with_both_ends(most: int, expected: list[int]) -> None:
    costs = costs_of(*range(1, 11))
    points = [trial(number, number, number / 10) for number in range(1, 11)]
    assert numbers(spread(points, costs, most)) == expected
    assert spread(points, costs, 10) == points


def test_points_are_spread_by_cost_and_not_by_their_places() -> None:
    costs = costs_of(1, 2, 3, 50, 100)
    points = [trial(number, cost, number / 10) for number, cost in enumerate((1, 2, 3, 50, 100))]
    assert numbers(spread(points, costs, 3)) == [0, 3, 4]


def test_bands_are_quantiles_of_the_distinct_costs_of_the_space() -> None:
    assert bands([30, 10, 20, 10]) == {10: 0, 20: 1, 30: 2}
    assert list(bands(range(8)).values()) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert list(bands(range(9)).values()) == [0, 0, 0, 1, 1, 2, 2, 3, 3]


def confirmed(
    searched: Sequence[SearchedTrial],
    alone: Sequence[SearchedTrial],
    costs: Costs,
    most: int = 8,
    published: Sequence[SearchedTrial] = (),
) -> list[tuple[str, str, str | None]]:
    found = front_candidates(searched, alone, published, costs, most, ["student"])
    return [(each.key, each.trial.key, each.baseline) for each in found]


def test_each_point_is_compared_with_the_most_accurate_baseline_that_costs_no_more() -> None:
    costs = costs_of(1, 2, 3, 4)
    searched = [trial(0, 2, 0.7), trial(1, 3, 0.8)]
    alone = [trial(5, 1, 0.6, stage="baselines"), trial(6, 3, 0.7, stage="baselines")]
    alone.append(trial(7, 4, 0.9, stage="baselines"))
    assert confirmed(searched, alone, costs) == [
        ("front 1", "search 0", "baseline 1"),
        ("front 2", "search 1", "baseline 2"),
        ("baseline 1", "baselines 5", None),
        ("baseline 2", "baselines 6", None),
        ("baseline 3", "baselines 7", None),  # of the baselines' front, although nothing is compared with it
    ]


def test_a_point_cheaper_than_all_baselines_is_compared_with_its_student_alone_at_its_own_values() -> None:
    costs = costs_of(1, 2, 3)
    searched = [trial(0, 1, 0.6), trial(1, 3, 0.8)]
    found = front_candidates(searched, [trial(5, 2, 0.7, stage="baselines")], [], costs, 8, ["student"])
    assert [(each.key, each.trial.key, each.values, each.baseline) for each in found if each.role == "baseline"] == [
        ("baseline 1", "search 0", {"student": "1"}, None),
        ("baseline 2", "baselines 5", {"student": "2"}, None),
    ]
    assert [each.baseline for each in found[:2]] == ["baseline 1", "baseline 2"]


def test_of_long_fronts_no_more_than_select_candidates_are_confirmed_and_no_comparison_is_lost() -> None:
    costs = costs_of(*range(1, 11))
    searched = [trial(number, number, number / 10) for number in range(1, 11)]
    alone = [trial(number, number, number / 20, stage="baselines") for number in range(1, 11)]
    found = confirmed(searched, alone, costs, most=4)
    assert [row[1] for row in found] == [f"search {n}" for n in (1, 4, 7, 10)] + [
        f"baselines {n}" for n in (1, 4, 7, 10)
    ]


def test_published_points_are_confirmed_under_their_own_names() -> None:
    costs = costs_of(1, 2)
    published = [trial(0, 1, 0.5), trial(1, 2, 0.8)]
    searched = [trial(4, 1, 0.6), published[1]]
    alone = [trial(5, 1, 0.7, stage="baselines")]
    assert confirmed(searched, alone, costs, published=published) == [
        ("front 1", "search 4", "baseline 1"),
        ("published 2", "search 1", "baseline 1"),
        ("published 1", "search 0", "baseline 1"),
        ("baseline 1", "baselines 5", None),
    ]
