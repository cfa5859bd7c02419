"""`study.start_from: defaults`: the point of each method, from its authors' values."""

from pathlib import Path
from typing import Any, get_args

import pytest
from studies import TREE, sweep_file

from kdtrain.config.sweep import Sweep, load_sweep
from kdtrain.errors import UserError
from kdtrain.methods.authors import AUTHORS_VALUES, authors_config, method_class, spelled
from kdtrain.methods.loss_weights import LossWeights, RatioIsWeight
from kdtrain.methods.none import NoDistillation
from kdtrain.methods.registry import Method

LR = TREE["recipe"]["optimizer"]
WEIGHT = {"weight": {"loguniform": [0.01, 10000]}}


def started(tmp_path: Path, method: Any, **study: Any) -> Sweep:
    settings = {"published": None, "start_from": "defaults", **study}
    return load_sweep(sweep_file(tmp_path, recipe={"method": method}, study=settings))


def test_the_methods_values_are_their_authors_and_the_rest_is_the_middle(tmp_path: Path) -> None:
    kd = {
        "name": "kd",
        "balance": WEIGHT,
        "temperature": {"loguniform": [1, 20]},
        "standardise": {"choice": [True, False]},
    }
    dkd = {
        "name": "dkd",
        "balance": {"alpha_ce": {"uniform": [0, 1]}},
        "beta": {"uniform": [0, 10]},
        "warmup_epochs": {"int": [1, 30]},
    }
    sweep = started(tmp_path, {"choice": [kd, dkd]})
    lr = pytest.approx((LR["lr"]["loguniform"][0] * LR["lr"]["loguniform"][1]) ** 0.5)
    first = {"balance.weight": pytest.approx(9), "temperature": 4.0, "standardise": False}
    second = {"balance.alpha_ce": 0.5, "beta": 8.0, "warmup_epochs": 20}
    assert sweep.defaults == (
        {"method": "kd", **{f"method[kd].{name}": value for name, value in first.items()}, "optimizer.lr": lr},
        {"method": "dkd", **{f"method[dkd].{name}": value for name, value in second.items()}, "optimizer.lr": lr},
    )
    assert sweep.baseline().defaults == ({"optimizer.lr": lr},)
    assert load_sweep(tmp_path / "small.yaml", ["study.start_from=null"]).first_points == ()


def test_defaults_that_depend_on_what_is_written_are_those_of_the_config(tmp_path: Path) -> None:
    """The published convention of the critic has other turns, which its config fills in."""
    method = {
        "name": "logits_discriminator", "balance": {"alpha": 0.5}, "temperature": {"uniform": [1, 5]},
        "critic_steps": {"int": [1, 100]}, "student_steps": {"logint": [10, 400]}, "convention": "published",
    }  # fmt: skip
    (point,) = started(tmp_path, method).defaults
    del point["optimizer.lr"]
    assert point == {"method.temperature": 1.5, "method.critic_steps": 21, "method.student_steps": 179}
    method |= {"convention": "corrected", "critic_training": {"lr": {"loguniform": [1e-5, 1]}}}
    (point,) = started(tmp_path, method).defaults
    expected = {"method.critic_steps": 30, "method.student_steps": 170, "method.critic_training.lr": 0.001}
    assert expected.items() <= point.items()


def test_a_published_point_is_not_tried_twice(tmp_path: Path) -> None:
    published = [{"method": {"balance": {"alpha_ce": 0.5}}, "optimizer": {"lr": 0.01}}]
    method = {"name": "logit_mse", "balance": {"alpha_ce": {"uniform": [0, 1]}}}
    fixed = {"method": method, "optimizer": {"name": "adam", "lr": {"choice": [0.01, 0.1]}}}
    file = sweep_file(tmp_path, recipe=fixed, study={"published": published, "start_from": "defaults"})
    sweep = load_sweep(file)
    assert sweep.first_points == sweep.published == sweep.defaults


@pytest.mark.parametrize(
    ("method", "study", "rule"),
    [
        ({"name": "sp", "balance": {"weight": {"uniform": [1, 100]}}}, {},
         r"recipe\.method\.balance\.weight: must contain 3000\.0, .* authors of sp .* got uniform \[1\.0, 100\.0\]"),
        ({"name": "at", "balance": {"weight": 1}, "stages": {"choice": [["16"], ["32"]]}}, {},
         r"recipe\.method\.stages: must contain '\[16, 32\]'"),
        ({"choice": [TREE["recipe"]["method"], {"name": "logit_mse", "balance": {"alpha": 0.5}}]},
         {"trials": 2, "published": [{"method": {"name": "logit_mse"}, "optimizer": {"lr": 0.01}}]},
         r"study\.trials: must be >= 3, the number of published points and of methods' defaults, got 2"),
        (TREE["recipe"]["method"], {"start_from": "default"}, r"study\.start_from: must be one of defaults"),
    ],
)  # fmt: skip
def test_what_cannot_be_started_from_is_refused_with_its_line(
    tmp_path: Path, method: Any, study: dict[str, Any], rule: str
) -> None:
    with pytest.raises(UserError, match=rf"small\.yaml:\d+: {rule}"):
        started(tmp_path, method, **study)


def test_defaults_without_a_search_space_have_no_effect(tmp_path: Path) -> None:
    fixed = {"method": {"name": "logit_mse", "balance": {"alpha": 0.5}}, "optimizer": {"name": "adam", "lr": 0.01}}
    file = sweep_file(
        tmp_path, recipe=fixed, study={"trials": 1, "published": None, "pruner": None, "start_from": "defaults"}
    )
    with pytest.raises(UserError, match=r"study\.start_from: has no effect"):
        load_sweep(file)


def test_every_method_with_a_distillation_term_has_its_authors_values() -> None:
    union, *_ = get_args(Method)
    assert set(AUTHORS_VALUES) == set(get_args(union)) - {NoDistillation}
    for method in AUTHORS_VALUES:
        (name,) = get_args(method.model_fields["name"].annotation)
        assert authors_config(method, {"name": name}).name == name
        assert method_class(name) is method


@pytest.mark.parametrize("kind", [LossWeights, RatioIsWeight])
@pytest.mark.parametrize("spelling", ["weight", "kd_ratio", "alpha", "alpha_ce"])
def test_a_spelling_keeps_the_ratio_of_the_two_terms(kind: type[LossWeights], spelling: str) -> None:
    for balance in (kind(alpha=0.9), kind(weight=25.0), kind(alpha_ce=0.25)):
        cross_entropy, distillation = kind(**{spelling: spelled(balance, spelling)}).weights
        before = balance.weights
        assert distillation / cross_entropy == pytest.approx(before[1] / before[0])
