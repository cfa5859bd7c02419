"""Search spaces in the spelling of other tools: refused, with kdtrain's spelling of the user's own values."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from studies import TREE

from kdtrain.config.sweep import Sweep, load_sweep, recipe_from_dict
from kdtrain.errors import UserError


def problem_of(value: Any, *path: str) -> str:
    tree = deepcopy(TREE)
    tree["study"]["published"] = []
    tree["recipe"]["teacher"]["batch_size"] = 16
    node = tree["recipe"]
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    with pytest.raises(UserError) as caught:
        Sweep.from_dict(tree, "mine")
    (problem,) = caught.value.problems
    assert problem.startswith(f"mine: recipe.{'.'.join(path)}: "), problem
    return problem


SPELLINGS = [
    ([1, 2, 4], "{choice: [1, 2, 4]}"),
    ({"values": [1, 2, 4]}, "{choice: [1, 2, 4]}"),  # W&B
    ({"min": 1, "max": 20}, "{uniform: [1, 20]}, or {int: [1, 20]} for whole numbers"),
    ({"low": 1, "high": 20, "log": True}, "{loguniform: [1, 20]}, or {logint: [1, 20]} for whole numbers"),
    ({"min": 1.0, "max": 20}, "{uniform: [1.0, 20]}"),
    ({"distribution": "log_uniform_values", "min": 1, "max": 20}, "{loguniform: [1, 20]}"),
    ({"distribution": "log_uniform", "min": -2, "max": 2}, "{loguniform: [0.135335, 7.38906]}"),
    ({"value": 3}, "write 3"),
    ({"grid_search": [1, 2]}, "{choice: [1, 2]}"),  # Ray Tune
    ("tune.choice([1, 2])", "{choice: [1, 2]}"),
    ("tune.loguniform(1e-4, 1e-1)", "{loguniform: [0.0001, 0.1]}"),
    ("tune.randint(1, 10)", "{int: [1, 9]}"),
    ({"type": "float", "low": 0.1, "high": 10, "log": True}, "{loguniform: [0.1, 10]}"),  # Optuna
    ({"type": "int", "low": 1, "high": 10, "log": True}, "{logint: [1, 10]}"),
    ({"type": "categorical", "choices": [1, 2]}, "{choice: [1, 2]}"),
    ("choice(1,2)", "{choice: [1, 2]}"),  # Hydra
    ("interval(0.5, 3)", "{uniform: [0.5, 3]}"),
    ("tag(log, interval(1e-3, 1))", "{loguniform: [0.001, 1]}"),
    ("1,2,4", "{choice: [1, 2, 4]}"),
    ({"_type": "uniform", "_value": [1, 5]}, "{uniform: [1, 5]}"),  # NNI
]


@pytest.mark.parametrize(("value", "ours"), SPELLINGS, ids=[str(value) for value, _ in SPELLINGS])
def test_another_tools_spelling_is_answered_with_ours(value: Any, ours: str) -> None:
    assert problem_of(value, "method", "temperature").endswith(ours)


def test_a_list_of_any_kind_is_answered_with_a_choice() -> None:
    assert problem_of([16, 32], "batch_size").endswith("write {choice: [16, 32]}")
    assert problem_of(["none", "encoder"], "student", "freeze").endswith("write {choice: [none, encoder]}")
    models = [{"model": "lenet5_student"}, {"model": "lenet5_teacher"}]
    ours = "write {choice: [{model: lenet5_student}, {model: lenet5_teacher}]}"
    assert problem_of(models, "student").endswith(ours)
    assert problem_of({"values": models}, "student").endswith(ours)
    assert problem_of(list(range(100)), "batch_size").endswith("write {choice: [...]}")


@pytest.mark.parametrize(
    "value", ["hello", "a,b", {"distribution": "normal", "mu": 1, "sigma": 1}, {"min": 5, "max": 1}]
)
def test_what_has_no_spelling_of_ours_gets_none_with_wrong_values(value: Any) -> None:
    problem = problem_of(value, "method", "temperature")
    assert "[5, 1]" not in problem.partition("write")[2]
    assert ("write" in problem) == isinstance(value, dict)


def test_our_spelling_is_valid() -> None:
    tree = deepcopy(TREE)
    tree["study"]["published"] = []
    sweep = Sweep.from_dict(tree, "mine", overrides=["recipe.method.temperature={choice: [1, 2]}"])
    assert sweep.tree["method"]["temperature"] == {"choice": [1, 2]}


def test_a_plain_recipe_gets_no_hint_of_a_search() -> None:
    recipe = {
        **TREE["recipe"],
        "epochs": [1, 2],
        "method": {"name": "kd", "balance": {"alpha": 0.5}, "temperature": 4.0},
    }
    recipe["optimizer"] = {"name": "adam", "lr": 0.1}
    with pytest.raises(UserError) as caught:
        recipe_from_dict(recipe)
    assert caught.value.problems == ("recipe: epochs: must be a whole number, got [1, 2]",)


def test_the_line_of_the_file_is_named(tmp_path: Path) -> None:
    tree = deepcopy(TREE)
    tree["study"]["published"] = []
    tree["recipe"]["method"]["temperature"] = [1, 2, 4]
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(tree, sort_keys=False))
    line = 1 + next(i for i, text in enumerate(file.read_text().splitlines()) if "temperature" in text)
    with pytest.raises(UserError) as caught:
        load_sweep(file)
    assert caught.value.problems == (
        f"{file}:{line}: recipe.method.temperature: must be a number, got [1, 2, 4];"
        " to search over these values write {choice: [1, 2, 4]}",
    )
