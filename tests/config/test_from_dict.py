"""Sweeps and recipes from Python dicts: checked as files are, with the name in place of file and line."""

import copy
import dataclasses
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from kdtrain.config.space import probe_points
from kdtrain.config.sweep import Sweep, load_recipe, load_sweep, recipe_from_dict
from kdtrain.errors import UserError

ROOT = Path(__file__).parents[2]
SWEEP: dict[str, Any] = yaml.safe_load((ROOT / "sweeps" / "digits_kd.yaml").read_text())


def problems_of(data: Any, *overrides: str, name: str = "mine") -> tuple[str, ...]:
    with pytest.raises(UserError) as caught:
        Sweep.from_dict(data, name, overrides)
    return caught.value.problems


def changed(path: str, value: Any) -> dict[str, Any]:
    """The digits sweep with one value replaced."""
    data: dict[str, Any] = copy.deepcopy(SWEEP)
    *above, key = path.split(".")
    node = data
    for part in above:
        node = node[part]
    node[key] = value
    return data


@pytest.mark.parametrize("name", ["digits_kd", "cub_at"])
def test_a_sweep_from_a_dict_equals_the_sweep_from_the_file_except_for_places(name: str) -> None:
    file = ROOT / "sweeps" / f"{name}.yaml"
    overrides = ["study.trials=9", "recipe.epochs=30"]
    data = yaml.safe_load(file.read_text())
    before = copy.deepcopy(data)
    for given in ([], overrides):
        sweep, loaded = Sweep.from_dict(data, name, overrides=given), load_sweep(file, overrides=given)
        assert dataclasses.replace(sweep, located=loaded.located) == loaded
        assert sweep.located.data == loaded.located.data
        first = probe_points(sweep.tree)[0]
        assert sweep.recipe_for(first, 3) == loaded.recipe_for(first, 3)
        assert yaml.safe_load(sweep.located.text) == data == before


def test_a_recipe_from_a_dict_equals_the_recipe_from_the_file() -> None:
    file = ROOT / "recipes" / "mnist_kd.yaml"
    loaded = load_recipe(file, overrides=["epochs=3"])
    assert recipe_from_dict(yaml.safe_load(file.read_text()), overrides=["epochs=3"]) == loaded
    assert recipe_from_dict(loaded.model_dump()) == loaded


def test_every_mistake_of_a_dict_is_reported_at_once_in_its_order_with_its_path() -> None:
    data = changed("study", {"trails": 3})
    data["recipe"]["teacher"] = {"model": "lenet5_teacher", 3: "x"}
    data["recipe"]["optimizer"] = {"name": "sgd", "lr": math.nan, "momentum": {"uniform": (2, 1)}}
    expected = [
        "mine: recipe.teacher.3: a key must be text, got 3",
        "mine: recipe.optimizer.lr: must be a finite number, got nan",
        "mine: recipe.optimizer.momentum: uniform must go from low to high, got [2, 1]",
        "mine: study.trials: is missing",
        "mine: study.trails: study has no 'trails'; nearest: trials",
        "--set recipe.seed: belongs to the study; write study.seed",
    ]
    found = problems_of(data, "recipe.seed=3")
    assert all(text.startswith(start) for text, start in zip(found, expected, strict=True)), found
    with pytest.raises(UserError, match=r"^recipe: epochs: must be >= 1, got 0$"):
        recipe_from_dict(load_recipe(ROOT / "recipes" / "mnist_kd.yaml").model_dump() | {"epochs": 0})


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("recipe.optimizer.lr", {"loguniform": (0.01, 0.3)}),
        ("recipe.batch_size", np.int64(32)),
        ("recipe.label_smoothing", np.float32(0.5)),
        ("recipe.label_smoothing", Fraction(1, 4)),
        ("report", {"title": np.str_("Digits")}),
        ("recipe.teacher", {"model": "lenet5_teacher", "trained": Path("teacher.safetensors")}),
    ],
)
def test_common_values_of_python_are_accepted(path: str, value: Any) -> None:
    sweep = Sweep.from_dict(changed(path, value), "mine")
    assert yaml.safe_load(sweep.located.text) == sweep.located.data


@pytest.mark.parametrize(
    ("path", "value", "rule"),
    [
        ("recipe.label_smoothing", np.inf, "recipe.label_smoothing: must be a finite number, got inf"),
        ("recipe.epochs", object, "recipe.epochs: must be text, a number, "),
        ("recipe.epochs", 3.0, "recipe.epochs: must be a whole number, got 3.0"),
        ("recipe.epochs", np.bool_(True), "recipe.epochs: must be text, a number, "),
        ("recipe.student", {"model": "lenet5_student", None: 1}, "recipe.student.None: a key must be text, got null"),
        ("recipe", [SWEEP["recipe"]], "recipe: must be a mapping, {key: value}, got [{data: "),
    ],
)
def test_other_values_are_reported_with_their_path(path: str, value: Any, rule: str) -> None:
    (problem,) = problems_of(changed(path, value))
    assert problem.startswith(f"mine: {rule}")


def test_a_dict_that_contains_itself_is_refused() -> None:
    data = changed("recipe.student", {"model": "lenet5_student"})
    data["recipe"]["student"]["head"] = data["recipe"]
    assert "mine: recipe.student.head: must not contain itself" in problems_of(data)


def test_what_is_not_a_sweep_is_refused() -> None:
    assert problems_of([1])[0].startswith("mine: must be a mapping")
    assert problems_of(SWEEP["recipe"]) == ("mine: is a plain recipe, not a sweep",)
    with pytest.raises(UserError, match=r"^recipe: is a sweep, not a plain recipe$"):
        recipe_from_dict(SWEEP)
    assert "must not be trials" in problems_of(SWEEP, name="trials")[0]
    for name in ("", "..", "a/b", None, 3):
        assert problems_of(SWEEP, name=name)[0].startswith("name: ")
    for overrides in ("study.trials=3", 3, None, {"study.trials": 3}):
        with pytest.raises(UserError, match=r"^overrides: must be a list"):
            Sweep.from_dict(SWEEP, "mine", overrides=overrides)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"^overrides: must be texts, such as 'recipe.epochs=3', got 3$"):
        Sweep.from_dict(SWEEP, "mine", overrides=[3])  # type: ignore[list-item]
    with pytest.raises(UserError, match=r"^file: must be the path of a YAML file, got 3$"):
        load_sweep(3)  # type: ignore[arg-type]


def test_what_is_nested_too_deeply_is_a_sentence_in_python_in_a_file_and_in_an_override(tmp_path: Path) -> None:
    deep: Any = 1
    for _ in range(3000):
        deep = {"a": deep}
    assert problems_of(deep) == ("mine: is nested too deeply to be read: more than 100 levels",)
    file = tmp_path / "deep.yaml"
    for depth in (150, 3000):
        file.write_text("{a: " * depth + "1" + "}" * depth)
        with pytest.raises(UserError, match=r"deep\.yaml:1: is nested too deeply to be read"):
            load_sweep(file)
    (problem,) = problems_of(SWEEP, f"recipe.{'a.' * 3000}b=1")
    assert problem.endswith("is nested too deeply: more than 100 levels")


HUGE = 10**400


@pytest.mark.parametrize(
    ("path", "value", "rule"),
    [
        ("recipe.epochs", HUGE, "must be a number of at most 1023 bits, got one of 1329"),
        ("recipe.epochs", 10**10, "must be <= 1000000000, got 10000000000"),
        ("recipe.batch_size", 10**10, "must be <= 1000000000"),
        ("recipe.optimizer.lr", {"uniform": [0, 1e301]}, "uniform must be within -1e+300 and 1e+300"),
        ("recipe.batch_size", {"int": [1, 10**16]}, "int must be within -1e+15 and 1e+15"),
        ("study.trials", 10**7, "must be <= 1000000, got 10000000"),
        ("study.confirm", {"seeds": 10**4}, "seeds: must be <= 1000, got 10000"),
        ("resources", {"workers": 10**5}, "workers: must be <= 10000, got 100000"),
        ("resources", {"cpus_per_worker": 10**5}, "cpus_per_worker: must be <= 10000, got 100000"),
        ("resources", {"cache_bytes": 2**61}, "cache_bytes: must be <= 1152921504606846976"),
    ],
)  # fmt: skip
def test_a_number_that_would_overflow_later_is_refused(path: str, value: Any, rule: str) -> None:
    (problem,) = problems_of(changed(path, value))
    assert rule in problem
    assert len(problem) < 200


def test_a_number_of_hundreds_of_digits_in_a_file_is_a_sentence(tmp_path: Path) -> None:
    file = tmp_path / "big.yaml"
    for digits in (400, 5000):
        file.write_text(
            yaml.safe_dump(changed("recipe.batch_size", 7)).replace("batch_size: 7", f"batch_size: {'9' * digits}")
        )
        with pytest.raises(UserError) as caught:
            load_sweep(file)
        assert "recipe.batch_size: " in str(caught.value)
        assert len(str(caught.value)) < 300
