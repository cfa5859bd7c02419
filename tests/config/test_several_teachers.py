"""The forms in which several teachers are written, and mistakes in them with their lines."""

from pathlib import Path
from typing import Any

import pytest

from kdtrain.config.needed_trainings import chain, recipes_by_teacher, teacher_recipe, teacher_recipes, teachers_above
from kdtrain.config.recipe import Recipe
from kdtrain.config.sweep import load_recipe, load_sweep, recipe_from_dict
from kdtrain.config.written_teachers import each_teacher, written_teachers
from kdtrain.config.yaml_reader import dump_yaml
from kdtrain.errors import UserError

RECIPE = """\
data: {name: digits}
student: {model: lenet5_student}
teacher: TEACHER
method: {name: kd, temperature: 4, balance: {alpha: 0.5}}
optimizer: {name: sgd, lr: 0.1}
lr_schedule: {name: constant}
batch_size: 64
epochs: 8
"""
SWEEP = f"""\
study: {{trials: 4}}
recipe:
{"".join(f"  {line}" for line in RECIPE.splitlines(keepends=True))}"""
A, B = "{model: lenet5_teacher}", "{model: lenet5_half, epochs: 3}"


def loaded(folder: Path, teacher: str) -> Recipe:
    file = folder / "x.yaml"
    file.write_text(RECIPE.replace("TEACHER", teacher))
    return load_recipe(file)


FORMS: dict[str, tuple[str, list[tuple[str, int]], str, tuple[float, ...]]] = {
    "a list": (f"[{A}, {B}]", [("lenet5_teacher", 0), ("lenet5_half", 0)], "probabilities", (0.5, 0.5)),
    "an ensemble of a list": (
        f"{{ensemble: {{of: [{A}, {B}], combine: logits, weights: [1, 3]}}}}",
        [("lenet5_teacher", 0), ("lenet5_half", 0)], "logits", (0.25, 0.75),
    ),
    "seeds": (
        "{ensemble: {of: {model: lenet5_half, seed: 5}, seeds: 3, weights: [0, 1, 1]}}",
        [("lenet5_half", 5), ("lenet5_half", 6), ("lenet5_half", 7)], "probabilities", (0.0, 0.5, 0.5),
    ),
    "the student's model": (
        "[{model: as_student}, {model: as_student, seed: 1}]",
        [("lenet5_student", 0), ("lenet5_student", 1)], "probabilities", (0.5, 0.5),
    ),
    "finished teachers": (
        "[{model: lenet5_half, trained: a.pth}, {model: lenet5_half, trained: b.pth}]",
        [("lenet5_half", 0), ("lenet5_half", 0)], "probabilities", (0.5, 0.5),
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", list(FORMS))
def test_every_form_is_the_same_list_of_teachers_and_a_dump_reads_back_equal(form: str, tmp_path: Path) -> None:
    written, networks, combine, shares = FORMS[form]
    recipe = loaded(tmp_path, written)
    assert recipe.ensemble is not None
    assert [(teacher.model, teacher.seed) for teacher in recipe.teachers] == networks
    assert (recipe.ensemble.combine, recipe.ensemble.shares) == (combine, shares)
    dump = recipe.model_dump(mode="json")
    assert set(dump["teacher"]["ensemble"]) == {"of", "combine", "weights"}
    assert isinstance(dump["teacher"]["ensemble"]["of"], list)
    for again in (dump, recipe.model_dump(mode="json", exclude_unset=True)):
        assert recipe_from_dict(again) == recipe
        (tmp_path / "best.yaml").write_text(dump_yaml(again))
        assert load_recipe(tmp_path / "best.yaml") == recipe


def test_each_teacher_has_its_own_recipe_which_inherits_the_rest(tmp_path: Path) -> None:
    recipe = loaded(tmp_path, f"[{A}, {B}, {{model: lenet5_half, trained: a.pth}}]")
    assert [each.teachers for each in recipes_by_teacher(recipe)] == [(teacher,) for teacher in recipe.teachers]
    taught = [(each.student.model, each.epochs, each.method.name) for each in teacher_recipes(recipe)]
    assert taught == [("lenet5_teacher", 8, "none"), ("lenet5_half", 3, "none")]
    alone = loaded(tmp_path, A)
    assert (alone.ensemble, alone.teachers, recipes_by_teacher(alone)) == (None, (alone.teacher,), (alone,))
    assert teacher_recipes(alone) == (teacher_recipe(alone),) == teacher_recipes(recipe)[:1]


REFUSED = {
    "[]": ("", "at least 2 teachers, got 0"),
    f"[{A}]": ("", "at least 2 teachers, got 1"),
    f"[{A}, {B}, {A}]": ("", "teacher 3 repeats teacher 1"),
    f"[{A}, {{model: lenet5_teacher, epochs: 8}}]": ("", "two of its teachers are one"),
    f"[{A}, 3]": (".1", "must be a mapping"),
    f"[{A}, {{model: lenet5_hal}}]": (".1.model", "nearest: lenet5_half"),
    f"[{A}, {{model: lenet5_half, epoch: 3}}]": (".1.epoch", "nearest: epochs"),
    f"[{A}, [{A}, {B}]]": (".1", "cannot be a member of another"),
    f"{{ensemble: [{A}, {B}]}}": (".ensemble", "must be a mapping"),
    f"{{ensemble: {{of: {A}}}}}": (".ensemble.of", "seeds: 5"),
    f"{{ensemble: {{of: {A}, seeds: 1}}}}": (".ensemble.seeds", "must be >= 2, got 1"),
    f"{{ensemble: {{of: {A}, seeds: 101}}}}": (".ensemble.seeds", "must be <= 100, got 101"),
    f"{{ensemble: {{of: {A}, seeds: two}}}}": (".ensemble.seeds", "must be a whole number"),
    f"{{ensemble: {{of: [{A}, {B}], seeds: 2}}}}": (".ensemble.seeds", "remove seeds"),
    "{ensemble: {of: {model: lenet5_half, trained: a.pth}, seeds: 2}}": (".ensemble.seeds", "finished"),
    f"{{ensemble: {{of: [{A}, {{ensemble: {{of: {A}, seeds: 2}}}}]}}}}": (
        ".ensemble.of.1",
        "cannot be a member of another",
    ),
    f"{{ensemble: {{of: {A}, seeds: 2}}, model: lenet5_half}}": (".model", "has no 'model'"),
    f"{{ensemble: {{of: {A}, seeds: 2, weight: [1, 1]}}}}": (".ensemble.weight", "nearest: weights"),
    f"{{ensemble: {{of: {A}, seeds: 2, combine: mean}}}}": (".ensemble.combine", "one of probabilities, logits"),
    f"{{ensemble: {{of: {A}, seeds: 2, weights: [0, 0]}}}}": (".ensemble.weights", "one above 0, got [0, 0]"),
    f"{{ensemble: {{of: {A}, seeds: 2, weights: [1, -1]}}}}": (".ensemble.weights.1", "must be >= 0, got -1"),
    f"{{ensemble: {{of: {A}, seeds: 2, weights: [1, 1, 1]}}}}": (".ensemble.weights", "each of the 2 teachers, got 3"),
    f"{{ensemble: {{of: {A}, seeds: 2, weights: [1, .inf]}}}}": (".ensemble.weights.1", "finite"),
    "{ensemble: {of: {model: lenet5_half, epochs: x}, seeds: 3}}": (
        ".ensemble.of.epochs",
        "whole number, got 'x'",
    ),
}


@pytest.mark.parametrize("teacher", list(REFUSED))
def test_a_mistake_is_named_once_with_its_line(teacher: str, tmp_path: Path) -> None:
    place, rule = REFUSED[teacher]
    with pytest.raises(UserError) as caught:
        loaded(tmp_path, teacher)
    problems = [problem for problem in caught.value.problems if "is missing" not in problem]
    assert len(problems) == 1
    assert problems[0].startswith(f"{tmp_path / 'x.yaml'}:3: teacher{place}: ")
    assert rule in problems[0]


FEATURES = {
    "{name: at, balance: {weight: 1}}": "at",
    "{name: rkd_distance, balance: {alpha: 0.5}}": "rkd_distance",
    "{choice: [{name: logit_mse, balance: {alpha: 0.5}}, {name: mgd, balance: {weight: 1}}]}": "mgd",
}


@pytest.mark.parametrize("method", list(FEATURES))
def test_a_method_that_reads_features_takes_one_teacher(method: str, tmp_path: Path) -> None:
    text = SWEEP.replace("TEACHER", f"[{A}, {B}]").replace("{name: kd, temperature: 4, balance: {alpha: 0.5}}", method)
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(UserError) as caught:
        load_sweep(tmp_path / "x.yaml")
    assert f":5: recipe.teacher: must be one network with method {FEATURES[method]}" in str(caught.value)


def swept(folder: Path, teacher: str, *overrides: str) -> Any:
    (folder / "x.yaml").write_text(SWEEP.replace("TEACHER", teacher))
    return load_sweep(folder / "x.yaml", overrides)


SEARCHED = {
    "[1, {uniform: [0, 2]}]": {"teacher.ensemble.weights.1": 0.5},
    "{choice: [[1, 1], [2, 1]]}": {"teacher.ensemble.weights": "[2, 1]"},
}


@pytest.mark.parametrize("weights", list(SEARCHED))
def test_weights_are_searched_as_a_range_each_or_as_a_choice_of_lists(weights: str, tmp_path: Path) -> None:
    sweep = swept(tmp_path, f"{{ensemble: {{of: [{A}, {B}], weights: {weights}}}}}")
    recipe = sweep.recipe_for(SEARCHED[weights], 0)
    assert recipe.ensemble.shares == pytest.approx((2 / 3, 1 / 3))
    point = {"teacher": {"ensemble": {"weights": [1, 0.5] if "uniform" in weights else [2, 1]}}}
    with_point = swept(tmp_path, f"{{ensemble: {{of: [{A}, {B}], weights: {weights}}}}}", f"study.published=[{point}]")
    assert with_point.published == (SEARCHED[weights],)


def test_an_ensemble_competes_with_its_members_and_the_number_of_seeds_can_be_searched(tmp_path: Path) -> None:
    lists = swept(tmp_path, f"{{choice: [[{A}, {B}], {A}]}}").parameters[0]
    assert lists.labels == ("[lenet5_teacher, lenet5_half]", "lenet5_teacher")
    sweep = swept(tmp_path, f"{{choice: [{A}, {{ensemble: {{of: {A}, seeds: {{choice: [2, 4]}}}}}}]}}")
    (alone,) = sweep.recipe_for({"teacher": "lenet5_teacher"}, 0).teachers
    four = sweep.recipe_for({"teacher": "ensemble", "teacher[ensemble].ensemble.seeds": 4}, 0).teachers
    assert [teacher.seed for teacher in four] == [0, 1, 2, 3]
    assert four[0].model == alone.model


def test_a_range_elsewhere_in_an_ensemble_and_weights_that_may_all_be_0_are_refused(tmp_path: Path) -> None:
    ranged = "{ensemble: {of: {model: lenet5_half, epochs: {int: [2, 4]}}, seeds: 2}}"
    with pytest.raises(UserError, match=r":5: recipe.teacher.ensemble.of.epochs: must be a value or a choice"):
        swept(tmp_path, ranged)
    zeros = f"{{ensemble: {{of: [{A}, {B}], weights: [{{uniform: [0, 1]}}, {{uniform: [0, 1]}}]}}}}"
    with pytest.raises(UserError, match=r":5: recipe.teacher.ensemble.weights: must have one above 0, got \[0, 0\]$"):
        swept(tmp_path, zeros)


def test_each_teacher_inherits_searched_fields_of_the_first_published_point(tmp_path: Path) -> None:
    searched = "recipe.optimizer.lr={loguniform: [0.01, 1]}"
    sweep = swept(tmp_path, f"[{A}, {B}]", searched, "study.published=[{optimizer: {lr: 0.2}}]")
    recipe = sweep.recipe_for({"optimizer.lr": 0.7}, 0)
    assert [each.optimizer.lr for each in teacher_recipes(recipe)] == [0.2, 0.2]
    own = f"[{A}, {{model: lenet5_half, optimizer: {{name: sgd, lr: 0.3}}}}]"
    with pytest.raises(UserError) as caught:
        swept(tmp_path, own, searched)
    (problem,) = caught.value.problems
    assert ":5: recipe.teacher.0.optimizer.lr: is inherited from recipe.optimizer.lr" in problem


def test_written_teachers_are_found_and_changed_in_every_form() -> None:
    one, two = {"model": "a"}, {"model": "b"}
    forms: list[tuple[Any, list[Any]]] = [
        (None, []),
        (one, [((), one)]),
        ([one, 3, two], [((0,), one), ((2,), two)]),
        ({"ensemble": {"of": one, "seeds": 2}}, [(("ensemble", "of"), one)]),
        ({"ensemble": {"of": [one, two]}}, [(("ensemble", "of", 0), one), (("ensemble", "of", 1), two)]),
        ({"ensemble": 3, "model": "a"}, [((), {"ensemble": 3, "model": "a"})]),
    ]
    for written, expected in forms:
        assert written_teachers(written) == expected
        marked = each_teacher(written, lambda teacher: teacher | {"seed": 9})
        assert written_teachers(marked) == [(path, found | {"seed": 9}) for path, found in expected]
        assert written_teachers(written) == expected, "the written data was changed"


KD = "method: {name: kd, temperature: 2, balance: {alpha: 0.5}}"
LARGER = "{model: lenet5_half, data: {resolution: 24}}"
ASSISTANT = f"{{model: as_student, {KD}, teacher: {LARGER}}}"
BY_TWO = f"{{model: lenet5_half, {KD}, data: {{resolution: 20}}, teacher: [{A}, {{model: as_student}}]}}"


def test_a_member_has_its_own_data_and_its_own_teacher(tmp_path: Path) -> None:
    recipe = loaded(tmp_path, f"[{A}, {LARGER}, {ASSISTANT}]")
    assert [each.data.resolution for each in teacher_recipes(recipe)] == [32, 24, 32]
    larger = teacher_recipe(recipes_by_teacher(recipe)[1])
    needed = [(each.student.model, each.method.name, each.data.resolution) for each in chain(recipe)]
    assert needed == [
        ("lenet5_teacher", "none", 32), ("lenet5_half", "none", 24), ("lenet5_student", "kd", 32),
        ("lenet5_student", "kd", 32),
    ]  # fmt: skip
    assert chain(recipe)[1] == larger, "the second network and the teacher of the third are one training"
    dump = recipe.model_dump(mode="json")
    assert recipe_from_dict(dump) == Recipe.model_validate(dump) == recipe


def test_each_of_the_seeds_has_the_data_and_the_teacher_of_the_one(tmp_path: Path) -> None:
    recipe = loaded(tmp_path, f"{{ensemble: {{of: {ASSISTANT}, seeds: 2}}}}")
    first, *others = chain(recipe)
    assert (first.student.model, first.data.resolution) == ("lenet5_half", 24)
    assert [(each.student.model, each.seed) for each in others[:-1]] == [("lenet5_student", 0), ("lenet5_student", 1)]


def test_the_teacher_of_a_teacher_may_be_an_ensemble_that_takes_what_it_leaves_out_from_that_teacher(
    tmp_path: Path,
) -> None:
    recipe = loaded(tmp_path, BY_TWO)
    assert [(each.student.model, each.data.resolution) for each in chain(recipe)] == [
        ("lenet5_teacher", 20), ("lenet5_half", 20), ("lenet5_half", 20), ("lenet5_student", 32),
    ]  # fmt: skip
    places = [place for place, _ in teachers_above(recipe)]
    assert places == ["recipe.teacher", "recipe.teacher.teacher.0", "recipe.teacher.teacher.1"]
    for exclude_unset in (False, True):
        assert recipe_from_dict(recipe.model_dump(mode="json", exclude_unset=exclude_unset)) == recipe


BELOW = {
    f"[{A}, {{model: lenet5_half, data: {{name: mnist}}}}]": ("teacher.1.data.name", "must be that of recipe.data"),
    f"[{A}, {{model: lenet5_half, data: {{resolution: 4}}}}]": ("teacher.1.data.resolution", "must be >= 8, got 4"),
    f"[{A}, {{model: lenet5_half, data: {{resolution: 9}}}}]": ("teacher.1.data.resolution", "must be >= 10 for"),
    "{ensemble: {of: {model: lenet5_half, data: {resolution: 9}}, seeds: 2}}": (
        "teacher.ensemble.of.data.resolution", "must be >= 10 for",
    ),
    "{ensemble: {of: {model: lenet5_half, data: {x: 4}}, seeds: 2}}": (
        "teacher.ensemble.of.data.x", "digits has no 'x'",
    ),
    f"[{A}, {{model: lenet5_half, trained: a.pth, data: {{split_seed: 4}}}}]": ("teacher", "number 2, whose data"),
    f"[{A}, {{model: lenet5_half, {KD}}}]": ("teacher.1.method", "kd needs a teacher"),
    BY_TWO.replace(A, "{model: lenet5_half, data: {name: mnist}}"): ("teacher.teacher.0.data.name", "must be that of"),
    BY_TWO.replace(A, "{model: lenet5_half, epochs: 8}"): ("teacher.teacher", "two of its teachers are one"),
    BY_TWO.replace("name: kd, temperature: 2, balance: {alpha: 0.5}", "name: at, balance: {weight: 1}"): (
        "teacher", "must be one network with method at",
    ),
}  # fmt: skip


@pytest.mark.parametrize("teacher", list(BELOW))
def test_a_mistake_below_a_member_is_named_at_its_place(teacher: str, tmp_path: Path) -> None:
    place, rule = BELOW[teacher]
    with pytest.raises(UserError) as caught:
        loaded(tmp_path, teacher)
    (problem,) = caught.value.problems
    assert problem.startswith(f"{tmp_path / 'x.yaml'}:3: {place}: ")
    assert rule in problem
