from collections.abc import Callable
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from made_up_study import MadeUpStudy, choice, number

from analysis.frame import Study, read_study
from analysis.importance import MOST_TRIALS, branch_labels, branch_of, branches

Maker = Callable[..., MadeUpStudy]


NESTED = (
    choice("method", "kd", "mgd"),
    number("method[kd].temperature", "loguniform", method="kd"),
    number("method[mgd].mask", method="mgd"),
    choice("student", "a", "b"),
    number("lr", "loguniform"),
)


def searched(made: MadeUpStudy, trials: int, score: Callable[[dict[str, Any]], float], *, mgd: int = 0) -> Study:
    """`trials` trials of method kd, then `mgd` of method mgd."""
    chance = np.random.default_rng(0)
    for i in range(trials + mgd):
        values = {"method": "kd" if i < trials else "mgd", "student": "ab"[i % 2], "lr": float(chance.uniform(0.1, 10))}
        values |= {"method[kd].temperature" if i < trials else "method[mgd].mask": float(chance.uniform(0.1, 10))}
        made.trial("search", i, [score(values)], values=values)
    return read_study(made.folder)


def test_branches_are_the_labels_that_other_parameters_hang_on_to_any_depth() -> None:
    deep = [
        number("x", method="kd", **{"method[kd].form": "soft"}),
        choice("method[kd].form", "soft", "hard", method="kd"),
    ]
    assert branch_labels([*deep, choice("method", "kd", "mgd")]) == [
        {"method": "kd", "method[kd].form": "soft"},
        {"method": "kd", "method[kd].form": "hard"},
        {"method": "mgd"},
    ]
    assert branch_of({"method": "mgd"}, NESTED) == {"method": "mgd"}
    assert branch_labels([number("lr"), choice("student", "a", "b")]) == [{}]


def test_the_parameter_that_decides_gets_the_greatest_share(made_up: Maker) -> None:
    study = searched(made_up(parameters=NESTED), 40, lambda v: 0.9 - 0.03 * np.log(v["method[kd].temperature"]) ** 2)
    kd, mgd = branches(study)
    assert kd.shares is not None
    assert set(kd.shares) == {"method[kd].temperature", "student", "lr"}
    assert kd.shares["method[kd].temperature"] > 0.5
    assert sum(kd.shares.values()) <= 1 + 1e-9
    assert (kd.complete, mgd.complete, mgd.shares) == (40, 0, None)
    assert branches(study)[0] == kd  # forests and resamples are seeded
    for found in (kd.fanova, kd.ped_anova):
        assert found is not None
        assert all(each.low <= each.value <= each.high for each in found.values())
        assert max(found, key=lambda name: found[name].value) == "method[kd].temperature"


def test_below_twenty_complete_trials_importance_is_left_out_with_the_reason(made_up: Maker) -> None:
    made = made_up(parameters=NESTED)
    searched(made, 20, lambda v: 0.9 - 0.01 * v["lr"], mgd=19)
    values = {"method": "mgd", "student": "a", "lr": 1.0, "method[mgd].mask": 2.0}
    for i, state in ((39, "pruned"), (40, "failed")):
        made.trial("search", i, [0.2], state=state, values=values)
    kd, mgd = branches(read_study(made.folder))
    assert (kd.complete, kd.reason) == (20, None)
    assert kd.shares is not None
    assert (mgd.complete, mgd.shares) == (19, None)
    assert "19 complete trials" in str(mgd.reason)


def test_without_scikit_learn_importance_is_left_out_with_the_reason(
    made_up: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = Mock(side_effect=ImportError("No module named 'sklearn'"))
    monkeypatch.setattr("analysis.importance.get_param_importances", absent)
    kd = branches(searched(made_up(parameters=NESTED), 20, lambda v: 0.9 - 0.01 * v["lr"]))[0]
    assert (kd.shares, "sklearn" in str(kd.reason)) == (None, True)


def test_ped_anova_looks_at_the_lowest_values_of_an_objective_that_is_minimised(made_up: Maker) -> None:
    made = made_up(parameters=(number("lr"), number("beta")), objective="val/nll")
    chance = np.random.default_rng(0)
    for i in range(40):
        values = {"lr": float(chance.uniform(0.1, 10)), "beta": float(chance.uniform(0.1, 10))}
        nll = 0.1 if values["lr"] < 2 else 1.0 + 0.1 * values["beta"]
        made.trial("search", i, [0.5], nlls=[nll + 0.001 * i], values=values)
    (branch,) = branches(read_study(made.folder))
    assert branch.ped_anova is not None
    assert branch.ped_anova["lr"].value > 0.8


def test_equal_objectives_explain_nothing(made_up: Maker) -> None:
    kd = branches(searched(made_up(parameters=NESTED), 25, lambda v: 0.9))[0]
    assert (kd.shares, "all 25 complete trials" in str(kd.reason)) == (None, True)


def test_a_value_at_the_very_end_of_its_range_may_lie_a_rounding_outside(made_up: Maker) -> None:
    made = made_up(parameters=(number("lr", "loguniform"),))
    for i in range(20):
        made.trial("search", i, [0.5 + 0.01 * i], values={"lr": 10.000000000000002 if i == 0 else 0.1 + i / 3})
    assert branches(read_study(made.folder))[0].shares == {"lr": pytest.approx(1.0)}


def test_of_many_trials_as_many_are_drawn_as_a_forest_takes_in_a_second(made_up: Maker) -> None:
    made = made_up(parameters=NESTED, trials=MOST_TRIALS + 10)
    (kd, _) = branches(searched(made, MOST_TRIALS + 10, lambda v: 0.9 - 0.01 * v["lr"]), resamples=1)
    assert (kd.complete, kd.used) == (MOST_TRIALS + 10, MOST_TRIALS)
    assert kd.fanova is not None
    assert max(kd.fanova, key=lambda name: kd.fanova[name].value) == "lr"
