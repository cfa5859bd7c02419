"""The order of trials, and what pictures compare: pure functions of made-up trials."""

from trainings import KD, recipe

from kdtrain.config.teacher import Student
from kdtrain.study.selection import (
    SearchedTrial,
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


def test_equal_recipes_rank_once_and_ties_fall_to_the_second_metric_then_to_the_earlier_trial() -> None:
    trials = [trial(0, 0.5), trial(1, None), trial(2, 0.9, trial_id="same"), trial(3, 0.9, trial_id="same")]
    surer = SearchedTrial("search", 4, "surer", {}, SMALL, (0.5, -0.2))
    assert [each.number for each in ranked([*trials, surer, trial(5, 0.5)])] == [2, 4, 0, 5]


def test_the_mean_is_that_of_candidates_that_completed_every_seed() -> None:
    means = mean_objectives({"best kd": [0.9, None], "best at": [0.5, 0.7], "published 1": [0.9]})
    assert means == {"best at": 0.6, "published 1": 0.9}


def test_pictures_compare_the_best_distilled_recipe_of_each_freeze_with_the_students_alone() -> None:
    distilled = {f"best {i}": recipe(**KD, seed=i) for i in (1, 2)}
    recipes = {**distilled, "baseline 1": recipe(), "baseline 2": recipe(seed=2), "best 3": recipe(seed=3)}
    means = {"best 1": 0.5, "best 2": 0.6, "baseline 1": 0.1, "baseline 2": 0.9}
    compared = compared_recipes(recipes, means, maximize=True)
    assert compared == [recipes[key] for key in ("best 2", "baseline 2", "baseline 1")]
    assert compared_recipes(recipes, means, maximize=False)[0] == recipes["best 1"]
