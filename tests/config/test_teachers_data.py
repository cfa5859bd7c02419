"""`teacher.data`, `teacher.method` and `teacher.teacher` as they are written: merged, checked, located, read back."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from studies import TREE, sweep_file

from kdtrain.config.needed_trainings import chain, teacher_recipe
from kdtrain.config.recipe import Recipe
from kdtrain.config.sweep import load_sweep, recipe_from_dict
from kdtrain.errors import UserError
from kdtrain.study.cost import trainings

KD = {"name": "kd", "temperature": 4.0, "balance": {"alpha": 0.5}}
PLAIN: dict[str, Any] = TREE["recipe"] | {
    "data": {"name": "digits", "resolution": 16, "limit_per_class": 6},
    "method": KD,
    "optimizer": {"name": "sgd", "lr": 0.1},
}
ASSISTED: dict[str, Any] = {
    "model": "lenet5_student", "method": KD, "data": {"resolution": 20},
    "teacher": {"model": "lenet5_teacher", "data": {"limit_per_class": None}},
}  # fmt: skip


def made(teacher: dict[str, Any], **changes: Any) -> Recipe:
    return recipe_from_dict(PLAIN | {"teacher": {"model": "lenet5_teacher"} | teacher} | changes)


def refused(teacher: dict[str, Any], **changes: Any) -> list[str]:
    with pytest.raises(UserError) as caught:
        made(teacher, **changes)
    return [problem.removeprefix("recipe: ") for problem in caught.value.problems]


def test_a_teachers_data_are_the_recipes_with_its_own_values_over_them() -> None:
    trained_by = teacher_recipe(made({"data": {"resolution": 24, "split_seed": 3}}))
    assert trained_by is not None
    assert trained_by.data.model_dump() == {"name": "digits", "resolution": 24, "limit_per_class": 6, "split_seed": 3}
    assert teacher_recipe(made({})) == teacher_recipe(made({"data": {}})) != trained_by


def test_null_resets_what_the_recipe_has() -> None:
    config = made({"data": {"limit_per_class": None}})
    assert config.data.limit_per_class == 6
    assert teacher_recipe(config).data.limit_per_class is None  # type: ignore[union-attr]


def test_a_chain_is_trained_from_its_end_and_each_takes_what_it_leaves_out_from_the_next() -> None:
    config = made(ASSISTED | {"epochs": 7}, data=PLAIN["data"] | {"split_seed": 5})
    first, second, own = chain(config)
    assert own == config
    assert [each.student.model for each in (first, second)] == ["lenet5_teacher", "lenet5_student"]
    assert [each.method.name for each in (first, second)] == ["none", "kd"]
    assert (first.data.resolution, first.data.limit_per_class, first.data.split_seed) == (20, None, 5)
    assert (second.data.resolution, second.data.limit_per_class) == (20, 6)
    assert (first.epochs, second.epochs) == (7, 7)
    assert teacher_recipe(second) == first


def test_chains_have_any_depth() -> None:
    teacher: dict[str, Any] = {"model": "lenet5_teacher"}
    for seed in range(4):
        teacher = {"model": "as_student", "seed": seed, "method": KD, "teacher": teacher}
    config = made(teacher)
    assert [each.seed for each in chain(config)] == [0, 0, 1, 2, 3, 0]
    models = [each.student.model for each in chain(config)]
    assert models == ["lenet5_teacher", *["lenet5_student"] * 5]


@pytest.mark.parametrize(
    "teacher",
    [
        {"data": {"limit_per_class": None, "resolution": 24}},
        {"data": {"name": "digits"}},
        {"data": {"exclude_classes": None, "labelled_per_class": None, "augment": None}},
        {"data": {"resolution": 24}, "trained": "weights.pth"},
        ASSISTED,
        ASSISTED | {"teacher": {"model": "as_student", "trained": "weights.pth"}},
    ],
)
@pytest.mark.parametrize("exclude_unset", [False, True])  # True: as best.yaml
def test_a_dumped_recipe_is_the_same_recipe(teacher: dict[str, Any], exclude_unset: bool) -> None:
    few = {"exclude_classes": ["3"], "labelled_per_class": 2, "augment": {"rotate_degrees": 10.0}}
    config = made(teacher, data=PLAIN["data"] | few)
    assert config.data.labelled_per_class == 2
    dumped = config.model_dump(mode="json", exclude_unset=exclude_unset)
    assert Recipe.model_validate(dumped) == recipe_from_dict(yaml.safe_load(yaml.safe_dump(dumped))) == config


@pytest.mark.parametrize(
    ("teacher", "expected"),
    [
        ({"data": {"name": "mnist"}}, "teacher.data.name: "),
        ({"data": {"limit": 3}}, "teacher.data.limit: digits has no 'limit'"),
        ({"data": {"resolution": 4}}, "teacher.data.resolution: must be >= 8, got 4"),
        ({"data": {"resolution": 9}}, "teacher.data.resolution: must be >= 10 for lenet5_"),
        ({"data": {"resolution": 9}, "trained": "a.pth"}, "teacher.data.resolution: must be >= 10 for lenet5_"),
        (
            ASSISTED | {"teacher": {"model": "lenet5_half", "data": {"resolution": 9}}},
            "teacher.teacher.data.resolution: must be >= 10 for lenet5_half",
        ),
        ({"data": {"resolution": None}}, "teacher.data.resolution: must be a whole number, got null"),
        ({"data": 3}, "teacher.data: must be a mapping"),
        ({"data": {"limit_per_class": 3}, "trained": "a.pth"}, "teacher.data.limit_per_class: "),
        ({"method": KD}, "teacher.method: kd needs a teacher"),
        ({"method": {"name": "none"}, "teacher": {"model": "lenet5_half"}}, "teacher.method: none uses no teacher"),
        ({"teacher": {"model": "lenet5_half"}}, "teacher.teacher: needs a method"),
        ({"method": KD, "teacher": ASSISTED["teacher"], "trained": "a.pth"}, "teacher: a finished teacher"),
        (ASSISTED | {"teacher": {"model": "lenet5_half", "data": {"x": 1}}}, "teacher.teacher.data.x: digits has no"),
        (ASSISTED | {"teacher": {"model": "lenet5_half", "data": {"name": "mnist"}}}, "teacher.teacher.data.name: "),
        (ASSISTED | {"teacher": {"model": "lenet5_half", "epochs": 0}}, "teacher.teacher.epochs: must be >= 1"),
    ],
)
def test_a_mistake_is_told_at_its_place(teacher: dict[str, Any], expected: str) -> None:
    (problem,) = refused(teacher)
    assert problem.startswith(expected)


def test_a_mistake_of_the_recipes_data_is_not_told_again_of_each_teacher() -> None:
    problems = refused(ASSISTED, data={"name": "digits", "resolution": 2, "x": 1})
    assert [problem.split(":")[0] for problem in problems] == ["data.resolution", "data.x"]


def test_a_teachers_training_that_is_not_valid_is_told_at_any_depth() -> None:
    below = {"model": "lenet5_half", "epochs": 1, "lr_schedule": {"name": "cosine", "warmup_epochs": 2}}
    (problem,) = refused(ASSISTED | {"teacher": below})
    assert problem.startswith("teacher.teacher: its own training is not valid: ")


def located(tmp_path: Path, teacher: dict[str, Any], *overrides: str) -> list[str]:
    file = sweep_file(tmp_path, recipe={"teacher": TREE["recipe"]["teacher"] | teacher}, study={"published": None})
    with pytest.raises(UserError) as caught:
        load_sweep(file, overrides=overrides)
    lines = file.read_text().splitlines()
    return [
        text.removeprefix(f"{file}:").partition(": ")[2] + " @ " + lines[int(text.split(":")[1]) - 1].strip()
        if text.startswith(str(file))
        else text
        for text in caught.value.problems
    ]


def test_a_sweep_tells_the_line(tmp_path: Path) -> None:
    (problem,) = located(tmp_path, {"data": {"resolution": {"choice": [16, 4]}}})
    assert problem.startswith("recipe.teacher.data.resolution: must be >= 8, got 4")
    assert problem.endswith("@ - 4")
    (problem,) = located(tmp_path, {}, "recipe.teacher.data.limit=4")
    assert problem.startswith("--set recipe.teacher.data.limit: digits has no 'limit'")


def test_a_range_in_a_teachers_data_would_train_a_teacher_for_every_trial(tmp_path: Path) -> None:
    (problem,) = located(tmp_path, {"data": {"resolution": {"int": [16, 32]}}})
    assert problem.startswith("recipe.teacher.data.resolution: must be a value or a choice")


def test_choices_in_a_chain_are_searched_and_counted_as_teachers(tmp_path: Path) -> None:
    chosen = ASSISTED | {
        "data": {"resolution": {"choice": [16, 20]}},
        "epochs": 2,
        "optimizer": {"name": "sgd", "lr": 0.1},
    }
    chosen |= {"teacher": {"model": {"choice": ["lenet5_teacher", "lenet5_half"]}, "data": {"resolution": 16}}}
    sweep = load_sweep(sweep_file(tmp_path, recipe={"teacher": chosen}, study={"published": None}))
    assert [each.name for each in sweep.parameters[:2]] == ["teacher.data.resolution", "teacher.teacher.model"]
    assert trainings(sweep)["teacher"] == 2 + 2 * 2  # two at the end, and each teaches at two resolutions
    assert [each.name for each in sweep.baseline().parameters] == ["optimizer.lr"]


HALF: dict[str, Any] = PLAIN["data"] | {"part": {"of": 2, "index": 0}}


@pytest.mark.parametrize(
    "own", [{}, {"part": {"of": 2, "index": 1}}, {"part": {"of": 2, "index": 0}}, {"resolution": 20}, {"part": None}]
)
def test_equal_and_disjoint_parts_are_accepted(own: dict[str, Any]) -> None:
    made({"data": own}, data=HALF)


@pytest.mark.parametrize(
    "own",
    [
        {"part": {"of": 3, "index": 1}},
        {"part": {"of": 2, "index": 1}, "split_seed": 1},
        {"part": {"of": 2, "index": 1}, "limit_per_class": 3},
    ],
)
def test_overlapping_parts_are_refused(own: dict[str, Any]) -> None:
    (problem,) = refused({"data": own}, data=HALF)
    assert problem.startswith("teacher.data.part: overlaps recipe.data.part")


def test_a_sweep_tells_the_line_of_an_overlapping_part(tmp_path: Path) -> None:
    part = "recipe.data.part={of: 3, index: 0}"
    (problem,) = located(tmp_path, {"data": {"part": {"of": 2, "index": 0}}}, part)
    assert problem.startswith("recipe.teacher.data.part: overlaps recipe.data.part")
    assert problem.endswith("@ part:")
