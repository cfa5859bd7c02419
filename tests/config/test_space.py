import math
from typing import Any

import optuna
import pytest

from kdtrain.config.parameter import Values, check_spaces
from kdtrain.config.reference_points import match_point
from kdtrain.config.space import (
    combinations,
    distributions,
    grid,
    grid_size,
    parameters,
    probe_points,
    resolve,
    suggest,
)

KD = {"name": "kd", "temperature": {"loguniform": [1, 20]}, "balance": {"alpha_ce": {"uniform": [0, 1]}}}
NESTED = {
    "method": {"choice": [KD, {"name": "mgd", "mask": {"choice": [0.1, {"uniform": [0.2, 0.4]}]}}]},
    "optimizer": {"lr": {"loguniform": [1e-4, 1e-2]}},
    "critic_steps": {"logint": [1, 100]},
    "batch_size": {"choice": [32, 64]},
    "epochs": 4,
}


def texts(tree: Any, point: Any) -> list[str]:
    return [f"{'.'.join(map(str, problem.path))}: {problem.text}" for problem in match_point(tree, point)[1]]


def test_a_name_is_the_path_with_the_chosen_labels() -> None:
    found = {p.name: dict(p.conditions) for p in parameters(NESTED)}
    assert found == {
        "method": {},
        "method[kd].temperature": {"method": "kd"},
        "method[kd].balance.alpha_ce": {"method": "kd"},
        "method[mgd].mask": {"method": "mgd"},
        "method[mgd].mask[uniform]": {"method": "mgd", "method[mgd].mask": "uniform"},
        "optimizer.lr": {},
        "critic_steps": {},
        "batch_size": {},
    }
    mask = next(p for p in parameters(NESTED) if p.name == "method[mgd].mask[uniform]")
    assert (mask.path, mask.source) == (("method", "mask"), ("method", "choice", 1, "mask", "choice", 1))
    assert parameters({"method": {"choice": [KD]}})[1].name == "method[kd].temperature"


@pytest.mark.parametrize(
    ("options", "labels"),
    [
        ([32, 64], (32, 64)),
        ([True, 1], (True, "1 (2)")),
        ([None, "a"], ("null", "a")),
        ([None, "null"], ("null", "null (2)")),
        ([{"name": "kd", "a": 1}, {"name": "kd", "a": 2}, {"name": "kd (2)"}], ("kd", "kd (2)", "kd (2) (2)")),
        ([{"weight": 1}, {"alpha": {"uniform": [0, 1]}}], ("weight: 1", "alpha")),
        ([[16, 32], [32]], ("[16, 32]", "[32]")),
    ],
)
def test_labels_are_names_models_or_values_and_unique(options: list[Any], labels: tuple[Any, ...]) -> None:
    assert parameters({"a": {"choice": options}})[0].labels == labels


def test_resolving_gives_the_chosen_tree_and_where_each_value_was_written() -> None:
    values = {"method": "mgd", "method[mgd].mask": "uniform", "method[mgd].mask[uniform]": 0.3}
    values |= {"optimizer.lr": 1e-3, "critic_steps": 7, "batch_size": 64}
    resolved = resolve(NESTED, values)
    chosen = {"method": {"name": "mgd", "mask": 0.3}, "optimizer": {"lr": 1e-3}, "critic_steps": 7, "batch_size": 64}
    assert resolved.tree == chosen | {"epochs": 4}
    assert resolved.sources["method", "name"] == ("method", "choice", 1, "name")
    assert resolved.sources["batch_size",] == ("batch_size", "choice", 1)
    assert resolved.sources["epochs",] == ("epochs",)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({}, "no value for a"),
        ({"a": 3.0}, "a cannot be 3.0"),
        ({"a": True}, "a cannot be True"),
        ({"a": 1.0, "b": 2}, "nothing in the tree takes a value for b"),
    ],
)
def test_values_are_exactly_those_that_are_active(values: Values, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        resolve({"a": {"uniform": [0, 2]}}, values)


def test_probes_touch_every_option_and_both_ends_of_every_range() -> None:
    probes = probe_points(NESTED)
    for parameter in parameters(NESTED):
        seen = [values[parameter.name] for values in probes if parameter.name in values]
        assert set(parameter.extremes) <= set(seen), parameter.name
    assert len(probes) < 2 * len(parameters(NESTED))  # not a product


def test_combinations_choose_below_the_given_keys_only() -> None:
    chosen = [(v["method"], v.get("method[mgd].mask"), v["batch_size"]) for v in combinations(NESTED, ("method",))]
    assert chosen == [("kd", None, 32), ("mgd", 0.1, 32), ("mgd", "uniform", 32)]


def test_a_grid_takes_every_option_with_every_point_and_its_size_is_counted_right() -> None:
    points = grid(NESTED, 3)
    assert len(points) == grid_size(NESTED, 3) == (3 * 3 + 1 + 3) * 3 * 3 * 2
    assert len({tuple(sorted(map(str, values.items()))) for values in points}) == len(points)
    lrs = sorted({float(str(values["optimizer.lr"])) for values in points})
    assert lrs == pytest.approx([1e-4, 1e-3, 1e-2])
    assert {values["critic_steps"] for values in points} == {1, 10, 100}
    for values in points:
        resolve(NESTED, values)


def test_a_grid_over_a_short_int_range_takes_each_number_once() -> None:
    assert [values["a"] for values in grid({"a": {"int": [1, 3]}}, 9)] == [1, 2, 3]
    with pytest.raises(ValueError, match="needs at least 2 points"):
        grid({"a": {"int": [1, 3]}}, None)


def test_suggested_values_resolve_and_only_active_parameters_are_drawn() -> None:
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0, n_startup_trials=5))
    branches = set()
    for _ in range(25):
        trial = study.ask()
        values = suggest(trial, NESTED, {})
        resolved = resolve(NESTED, values)
        assert trial.params == values
        assert trial.distributions == distributions(NESTED, values)
        assert ("method[kd].temperature" in values) == (resolved.tree["method"]["name"] == "kd")
        branches.add((values["method"], values.get("method[mgd].mask")))
        study.tell(trial, 0.5)
    assert branches == {("kd", None), ("mgd", 0.1), ("mgd", "uniform")}


@pytest.mark.parametrize(
    ("space", "rule", "hint"),
    [
        ({"uniform": [3, 1]}, "uniform must go from low to high, got [3, 1]", "write [1, 3]"),
        ({"uniform": [2, 2]}, "uniform must have two different ends, got [2, 2]", "write 2"),
        ({"loguniform": [0, 1]}, "loguniform must be > 0, got [0, 1]", ""),
        ({"logint": [0, 8]}, "logint must be >= 1, got [0, 8]", ""),
        ({"int": [1.5, 3]}, "int must be two whole numbers, [low, high], got [1.5, 3]", ""),
        ({"uniform": 3}, "uniform must be two numbers, [low, high], got 3", ""),
        ({"uniform": ["a", True]}, "uniform must be two numbers, [low, high], got [a, true]", ""),
        ({"choice": []}, "choice must be a list", "got []"),
        ({"choice": [4, 5, 4.0]}, "option 3 repeats option 1: 4.0", ""),
        ({"uniform": [1, 2], "name": "kd"}, "a search space must be the only key", "remove name"),
        ({"logunform": [1, 20]}, "unknown search space 'logunform'", "nearest: loguniform (choices: uniform, "),
    ],
)
def test_an_invalid_space_is_refused(space: dict[str, Any], rule: str, hint: str) -> None:
    tree, (problem,) = check_spaces({"method": {"choice": [{"a": space}, 1]}})
    assert problem.text.startswith(rule)
    assert hint in problem.text
    assert problem.path[:4] == ("method", "choice", 0, "a")
    assert problem.shown_path == ("method", "a")
    assert probe_points(tree)  # the rest can be checked all the same
    assert len(check_spaces({"a": {"loguniform": [1, 0]}})[1]) == 2


def test_a_published_point_gives_what_is_searched_and_may_repeat_the_rest() -> None:
    point = {"method": {"name": "kd", "temperature": 10, "balance": {"alpha_ce": 0.1}}, "epochs": 4}
    point |= {"optimizer": {"lr": 1e-3}, "critic_steps": 21, "batch_size": 64}
    values, problems = match_point(NESTED, point)
    assert problems == []
    assert values == {
        "method": "kd", "method[kd].temperature": 10.0, "method[kd].balance.alpha_ce": 0.1,
        "optimizer.lr": 1e-3, "critic_steps": 21, "batch_size": 64,
    }  # fmt: skip
    assert resolve(NESTED, values).tree["method"]["balance"] == {"alpha_ce": 0.1}


def test_the_option_whose_content_fits_is_picked_among_those_of_one_name() -> None:
    tree = {"method": {"choice": [{"name": "kd", "t": 1}, {"name": "kd", "t": {"uniform": [2, 9]}}]}}
    assert match_point(tree, {"method": {"name": "kd", "t": 4}})[0] == {"method": "kd (2)", "method[kd (2)].t": 4.0}
    (text,) = texts(tree, {"method": {"name": "kd", "t": 20}})
    assert text.startswith("method: must be one of the options, kd, kd (2), got {name: kd, t: 20}")


@pytest.mark.parametrize(
    ("point", "rule", "value"),
    [
        ({"a": 2.5, "n": 3}, "a: must be in the searched range, uniform [0.0, 1.0]", "got 2.5"),
        ({"a": "x", "n": 3}, "a: must be a number", "got 'x'"),
        ({"a": 0.5, "n": 3.5}, "n: must be a whole number", "got 3.5"),
        ({"a": 0.5}, "n: is searched (int [1, 9])", "must give it"),
        ({"a": 0.5, "n": 3, "fixed": 5}, "fixed: is fixed to 4", "got 5"),
        ({"a": 0.5, "n": 3, "fixt": 4}, "fixt: is not written in the recipe", "nearest: fixed"),
        ({"a": 0.5, "n": 3, "fixed": {"b": 1}}, "fixed: is fixed to 4", "got {b: 1}"),
    ],
)
def test_a_published_point_outside_the_recipe_is_refused(point: dict[str, Any], rule: str, value: str) -> None:
    (text,) = texts({"a": {"uniform": [0, 1]}, "n": {"int": [1, 9]}, "fixed": 4}, point)
    assert text.startswith(rule)
    assert value in text


def test_a_published_choice_left_out_or_unknown_is_refused_by_name() -> None:
    tree = {"method": {"choice": [KD, {"name": "mgd"}]}}
    for point, *rules in (
        ({}, "method: is searched (kd, mgd)"),
        ({"method": {"name": "at"}}, "method: must be one of the options, kd, mgd, got {name: at}"),
        (
            {"method": {"name": "kd"}},
            "method.temperature: is searched (loguniform [1.0, 20.0])",
            "method.balance.alpha_ce: is searched (uniform [0.0, 1.0])",
        ),
    ):
        found = texts(tree, point)
        assert len(found) == len(rules)
        assert all(text.startswith(rule) for text, rule in zip(found, rules, strict=True)), found


def test_a_published_balance_may_be_spelt_in_another_way() -> None:
    weight = {"balance": {"weight": {"loguniform": [0.05, 20]}}}
    values, problems = match_point(weight, {"balance": {"kd_ratio": 0.7}})
    assert problems == []
    assert values["balance.weight"] == pytest.approx(0.7 / 0.3)
    alpha = {"balance": {"alpha_ce": {"uniform": [0, 0.1]}}}
    assert match_point(alpha, {"balance": {"alpha": 0.9}})[0] == {"balance.alpha_ce": 0.1}  # not above it by rounding
    assert match_point({"balance": {"alpha": 0.9}}, {"balance": {"alpha_ce": 0.1}}) == ({}, [])
    either = {"balance": {"choice": [{"alpha": {"uniform": [0, 1]}}, alpha["balance"]]}}
    values = {"balance": "alpha_ce", "balance[alpha_ce].alpha_ce": 0.1}
    assert match_point(either, {"balance": {"alpha_ce": 0.1}})[0] == values


def test_a_published_balance_that_cannot_be_respelt_is_a_problem() -> None:
    weight = {"balance": {"weight": {"loguniform": [0.05, 20]}}}
    (problem,) = texts(weight, {"balance": {"alpha": 0.5}})  # without cross-entropy's weight 1 it has no such spelling
    assert problem.startswith("balance: ")
    outside = texts(weight, {"balance": {"kd_ratio": 0.99}})[0]
    assert outside.startswith("balance: weight must be in the searched range, loguniform [0.05, 20.0], got 9")
    assert "{kd_ratio: 0.99}" in outside
    assert texts(weight, {"balance": {"kd_ratio": "x"}})[0].startswith("balance: must be one of weight, kd_ratio")


@pytest.mark.parametrize(
    ("value", "expected"), [(0, True), (1, True), (0.5, False), (True, False), ("0", False), (math.nan, False)]
)
def test_a_range_contains_its_ends_and_no_booleans(value: object, expected: bool) -> None:
    assert parameters({"a": {"int": [0, 1]}})[0].contains(value) is expected
