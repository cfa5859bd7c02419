"""A race over seeds: who gets one more seed, who is dropped, and who wins. Values are made up; nothing is trained."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest

from kdtrain.config.teacher import Student
from kdtrain.study.race import Entrant, Race
from kdtrain.study.selection import SearchedTrial, confirmed_candidates, race_trainings, racing_trials, ranked

STUDENT = Student(model="lenet5_student")
OTHER = Student(model="lenet5_teacher")
Reached = Mapping[str, tuple[float, float] | None]


def trial(number: int, value: float | None, option: str | None = None, student: Student = STUDENT) -> SearchedTrial:
    key = None if value is None else (value, -1.0)
    return SearchedTrial("search", number, f"id{number}", {"x": number}, student, key, option)


def race(values: Sequence[float], trainings: int, options: Sequence[str | None] | None = None) -> Race:
    trials = [trial(i, value, options[i] if options else None) for i, value in enumerate(values)]
    searched = {each.key: each.ranking_key for each in trials if each.ranking_key is not None}
    return Race("search", [Entrant(each.key, each.option, each) for each in trials], searched, 0, trainings, True)


def run(racing: Race, reach: Callable[[str, int], tuple[float, float] | None]) -> list[list[str]]:
    """Carry a race out; return who raced in each round."""
    rounds = []
    while entrants := racing.next_round():
        seed = 100 + len(rounds)
        rounds.append([each.key for each in entrants])
        racing.end_round(seed, {each.key: reach(each.key, seed) for each in entrants})
    return rounds


def noisy(means: Mapping[str, float], sd: float = 0.01) -> Callable[[str, int], tuple[float, float]]:
    return lambda key, seed: (means[key] + sd * np.random.default_rng([seed, int(key[7:])]).standard_normal(), -1.0)


def test_clear_losers_are_dropped_and_the_race_ends_when_one_is_left() -> None:
    means = {"search 0": 0.9, "search 1": 0.5, "search 2": 0.4}
    racing = race([0.9, 0.91, 0.4], trainings=12)
    rounds = run(racing, noisy(means))
    assert rounds[0] == ["search 0", "search 1", "search 2"]
    assert set(racing.dropped) == {"search 1", "search 2"}
    assert racing.winner() == "search 0"
    assert racing.spent == sum(map(len, rounds)) < 12


def test_the_last_trainings_go_to_the_best_if_there_are_too_few_for_all() -> None:
    """5 candidates that nothing tells apart, 8 trainings: 3 are left after the first round, and go to the first 3."""
    values = [0.50, 0.51, 0.52, 0.53, 0.54]
    racing = race(values, trainings=8)
    rounds = run(racing, noisy({f"search {i}": value for i, value in enumerate(values)}, sd=0.2))
    assert len(rounds[0]) == 5
    assert len(rounds[1]) <= 3
    assert racing.spent <= 8
    now = racing.posterior()
    left = [entrant.key for entrant in racing.entrants if entrant.key not in racing.dropped]
    assert now.mean(racing.winner() or "") == max(now.mean(key) for key in left)


def test_a_lucky_value_of_the_search_is_found_out() -> None:
    """The best single value was luck: with fresh seeds it is not the best recipe."""
    means = {"search 0": 0.80, "search 1": 0.86, "search 2": 0.70, "search 3": 0.60}
    racing = race([0.92, 0.86, 0.7, 0.6], trainings=12)
    run(racing, noisy(means))
    assert racing.winner() == "search 1"
    probabilities = racing.probabilities()
    assert sum(probabilities.values()) == pytest.approx(1)
    assert max(probabilities, key=probabilities.__getitem__) == "search 1"


def test_a_non_finite_loss_drops_a_candidate_at_once_and_leaves_it_out_of_the_posterior() -> None:
    means = {f"search {i}": 0.8 - 0.001 * i for i in range(3)}
    racing = race([0.8, 0.799, 0.798], trainings=12)
    rounds = run(racing, lambda key, seed: None if key == "search 0" else noisy(means)(key, seed))
    assert rounds[0] == ["search 0", "search 1", "search 2"]
    assert rounds[1] == ["search 1", "search 2"]
    assert racing.winner() == "search 1"
    assert racing.probabilities()["search 0"] == 0
    rows, posterior = racing.standing()
    assert (rows[0]["diverged"], rows[0]["mean"], posterior.keys) == (True, None, ("search 1", "search 2"))


def test_a_race_in_which_everybody_diverges_has_no_winner() -> None:
    racing = race([0.8, 0.7], trainings=8)
    run(racing, lambda key, seed: None)
    assert (racing.winner(), racing.leaders()) == (None, {})


def test_candidates_race_within_their_option_and_each_option_keeps_its_leader() -> None:
    means = {"search 0": 0.9, "search 1": 0.8, "search 2": 0.3, "search 3": 0.2}
    racing = race([0.9, 0.8, 0.3, 0.2], 16, ["kd", "kd", "at", "at"])
    run(racing, noisy(means))
    assert set(racing.dropped) == {"search 1", "search 3"}
    assert racing.leaders() == {"kd": "search 0", "at": "search 2"}
    assert racing.winner() == "search 0"


def test_equal_means_are_decided_by_the_lower_nll_then_by_the_number() -> None:
    def reach(key: str, seed: int) -> tuple[float, float]:
        return 0.5, {"search 0": -0.9, "search 1": -0.7, "search 2": -0.7}[key]

    racing = race([0.5, 0.5, 0.5], trainings=9)
    run(racing, reach)
    assert racing.winner() == "search 1"


def test_a_lower_objective_that_is_better_is_told_in_its_own_sign() -> None:
    racing = race([-0.3, -0.4], trainings=4)
    racing.maximize = False
    run(racing, lambda key, seed: (-0.3 if key == "search 0" else -0.4, 0.9))
    rows, _ = racing.standing()
    assert (rows[0]["value"], rows[0]["fresh"]) == (0.3, pytest.approx(0.3))
    assert racing.winner() == "search 0"


def test_the_candidates_are_the_best_the_published_and_two_of_each_option() -> None:
    options = ["at", "kd", "kd", "kd", "kd", "at", "at", "sp"]
    trials = [trial(i, 0.1 * i if i != 6 else None, option) for i, option in enumerate(options)]
    chosen = [each.number for each in racing_trials(ranked(trials), candidates=2, published=2)]
    # best first: 7 (sp), 5 (at), 4, 3, 2, 1 (kd), 0 (at); 6 is not complete
    assert chosen == [7, 5, 4, 3, 1, 0]


def test_the_default_number_of_trainings_is_half_the_trials_but_three_for_each_candidate() -> None:
    assert race_trainings(None, trials=40, candidates=8) == 24
    assert race_trainings(None, trials=100, candidates=8) == 50
    assert race_trainings(17, trials=100, candidates=8) == 17


def test_what_is_confirmed() -> None:
    """The leaders, the published points, their models' winning baselines, and that of the published student itself."""
    frozen = STUDENT.model_copy(update={"freeze": "encoder"})
    searched = [trial(0, 0.5, student=frozen), trial(1, 0.9), trial(2, 0.8, student=OTHER)]
    alone = [
        SearchedTrial("baselines", number, f"alone{number}", {"x": number, "y": 1}, student, (value, -1.0))
        for number, (value, student) in enumerate([(0.7, STUDENT), (0.4, frozen), (0.6, OTHER)])
    ]
    found = confirmed_candidates(
        {"kd": searched[1], "at": searched[2]},
        searched[:1],
        {STUDENT.model: alone[0], OTHER.model: alone[2]},
        alone,
        ["x"],
    )
    assert [(each.key, each.role, each.baseline) for each in found] == [
        ("best kd", "best", "baseline 1"),
        ("best at", "best", "baseline 2"),
        ("published 1", "published", "baseline 1"),
        ("baseline 1", "baseline", None),
        ("baseline 2", "baseline", None),
        ("baseline 3", "baseline", None),
    ]
    assert [each.trial.number for each in found[3:]] == [0, 2, 1]
    assert found[3].values == {"x": 0}


def test_a_published_point_that_leads_is_confirmed_once() -> None:
    searched = [trial(0, 0.9), trial(1, 0.5)]
    found = confirmed_candidates({"": searched[0]}, searched[:1], {}, [], [])
    assert [(each.key, each.baseline) for each in found] == [("published 1", "baseline 1"), ("baseline 1", None)]
    assert found[1].trial is searched[0], "no baseline of its model: the student is trained alone at its own values"
