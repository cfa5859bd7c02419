"""Candidates, their baselines, the winner, and what pictures compare: pure functions of made-up trials."""

from trainings import KD, recipe

from kdtrain.config.recipe import Student
from kdtrain.study.selection import (
    Candidate,
    SearchedTrial,
    choose_candidates,
    choose_winner,
    compared_recipes,
    mean_objectives,
    ranked,
)

SMALL, LARGE = Student(model="lenet5_student"), Student(model="lenet5_teacher")


def trial(
    number: int, accuracy: float | None, *, student: Student = SMALL, trial_id: str = "", stage: str = "search"
) -> SearchedTrial:
    key = None if accuracy is None else (accuracy, -1.0)
    return SearchedTrial(stage, number, trial_id or f"{stage} {number}", {"lr": number, "beta": 1}, student, key)


def alone(number: int, accuracy: float | None, student: Student = SMALL) -> SearchedTrial:
    return trial(number, accuracy, student=student, stage="baselines")


def chosen(searched: list[SearchedTrial], baselines: list[SearchedTrial], published: int = 0) -> dict[str, Candidate]:
    found = choose_candidates(searched, baselines, best=2, published=published, baseline_parameters={"lr"})
    return {candidate.key: candidate for candidate in found}


def test_equal_recipes_rank_once_and_ties_fall_to_the_second_metric_then_to_the_earlier_trial() -> None:
    trials = [trial(0, 0.5), trial(1, None), trial(2, 0.9, trial_id="same"), trial(3, 0.9, trial_id="same")]
    surer = SearchedTrial("search", 4, "surer", {}, SMALL, (0.5, -0.2))
    assert [each.number for each in ranked([*trials, surer, trial(5, 0.5)])] == [2, 4, 0, 5]


def test_a_candidate_is_compared_with_the_best_baseline_of_its_student_model() -> None:
    found = chosen([trial(0, 0.7), trial(1, 0.9)], [alone(0, 0.5), alone(1, 0.6), alone(2, 0.8, LARGE)], published=1)
    assert [(key, each.number, each.baseline) for key, each in found.items()] == [
        ("best 1", 1, "baseline 1"), ("best 2", 0, "baseline 1"), ("published 1", 0, "baseline 1"),
        ("baseline 1", 1, None), ("baseline 2", 2, None),
    ]  # fmt: skip
    assert found["baseline 1"].values == {"lr": 1}


def test_a_student_that_no_baseline_has_tried_is_trained_alone_at_the_values_of_its_first_trial() -> None:
    found = chosen([trial(0, 0.7, student=LARGE), trial(1, 0.9, student=LARGE)], [alone(0, 0.5), alone(1, None, LARGE)])
    assert found["best 1"].baseline == found["best 2"].baseline == "baseline 1"
    own, other = found["baseline 1"], found["baseline 2"]
    assert (own.stage, own.number, own.values) == ("search", 1, {"lr": 1})
    assert (other.stage, other.number) == ("baselines", 0)


def test_the_exact_student_of_a_published_recipe_has_a_baseline_beside_the_best_of_its_model() -> None:
    frozen = SMALL.model_copy(update={"freeze": "encoder"})
    found = chosen([trial(0, None, student=frozen), trial(1, 0.9)], [alone(0, 0.5, frozen), alone(1, 0.6)], published=1)
    assert found["published 1"].baseline == "baseline 1"
    assert [found[f"baseline {i}"].number for i in (1, 2)] == [1, 0]


def test_the_winner_has_the_best_mean_of_those_that_completed_every_seed() -> None:
    candidates = [Candidate(f"best {i}", "best", {}, "search", i, None) for i in (1, 2, 3)]
    candidates.append(Candidate("published 1", "published", {}, "search", 0, None))
    means = mean_objectives({"best 1": [0.9, None], "best 2": [0.5, 0.7], "best 3": [0.6, 0.5], "published 1": [0.9]})
    assert means == {"best 2": 0.6, "best 3": 0.55, "published 1": 0.9}
    winners = [choose_winner(candidates, means, maximize=maximize) for maximize in (True, False)]
    assert winners == candidates[1:3]
    assert choose_winner(candidates, {"published 1": 0.9}, maximize=True) is None


def test_pictures_compare_the_best_distilled_recipe_of_each_freeze_with_the_students_alone() -> None:
    distilled = {f"best {i}": recipe(**KD, seed=i) for i in (1, 2)}
    recipes = {**distilled, "baseline 1": recipe(), "baseline 2": recipe(seed=2), "best 3": recipe(seed=3)}
    means = {"best 1": 0.5, "best 2": 0.6, "baseline 1": 0.1, "baseline 2": 0.9}
    compared = compared_recipes(recipes, means, maximize=True)
    assert compared == [recipes[key] for key in ("best 2", "baseline 2", "baseline 1")]
    assert compared_recipes(recipes, means, maximize=False)[0] == recipes["best 1"]
