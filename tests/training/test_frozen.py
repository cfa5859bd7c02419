"""Frozen means frozen, through a real epoch of training; the teacher does not move at all."""

from typing import Any

import pytest
import torch
from runs import BATCH_NORM_STUDENT, changed, fitted, fresh_state, state_of
from trainings import ALONE, recipe, trained

from kdtrain.config.needed_trainings import teacher_recipe
from kdtrain.config.recipe import Recipe

TEACHER = BATCH_NORM_STUDENT | {"dropout": 0.3, "epochs": 1}
METHOD: dict[str, Any] = {"name": "kd", "temperature": 4.0, "balance": {"alpha": 0.5}}
DECAYING = {"name": "adamw", "lr": 0.002, "weight_decay": 0.1, "decay_on": "all"}
"""Moves whatever it is given, gradient or not."""


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Weights of a whole resnet18 in a file, of which the encoder is taken."""
    file = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    state = fresh_state(recipe(student={"model": "resnet18", "weights": None}, seed=5))
    torch.save(state.distiller.student.state_dict(), file)
    return {"file": str(file), "part": "encoder"}


def distilling(student: dict[str, Any], **other: Any) -> Recipe:
    data = ALONE["data"] | {"resolution": 32, "limit_per_class": 3}
    parts = {"data": data, "teacher": TEACHER, "method": METHOD, "student": student, "optimizer": DECAYING, "epochs": 1}
    return recipe(**parts | other)


def is_norm(name: str) -> bool:
    """As torchvision names resnet18's."""
    return ".bn" in name or "downsample.1" in name


def is_statistic(name: str) -> bool:
    return name.endswith(("running_mean", "running_var", "num_batches_tracked"))


@pytest.mark.parametrize("statistics", ["update", "keep"])
@pytest.mark.parametrize("freeze", ["none", "encoder", "encoder_but_norm"])
def test_an_epoch_moves_what_is_not_frozen_and_nothing_else(
    freeze: str, statistics: str, encoder: dict[str, Any]
) -> None:
    student = {"model": "resnet18", "weights": encoder, "freeze": freeze, "batch_norm_statistics": statistics}
    state = fresh_state(distilling(student, ema={"decay": 0.9, "ramp_updates": 2.0}))
    network, teacher = state.distiller.student, state.teachers[0].network
    before, teacher_before = state_of(network), state_of(teacher)
    for name, value in torch.load(encoder["file"]).items():
        assert torch.equal(before[name], value) is name.startswith("encoder."), name
    (row,) = fitted(state)
    assert row["step"] == 2

    moved = changed(before, state_of(network))
    parameters = {name for name, _ in network.named_parameters()}
    frozen = {name for name in parameters if name.startswith("encoder.") and freeze != "none"}
    if freeze == "encoder_but_norm":
        frozen = {name for name in frozen if not is_norm(name)}
    running = {name for name in before if is_statistic(name)}
    assert len(parameters) == 62
    assert len(running) == 60
    assert moved == (parameters - frozen) | (running if statistics == "update" else set())
    assert changed(before, state_of(state.ema.module)) & (parameters | running) == moved

    assert changed(teacher_before, state_of(teacher)) == set()
    assert any(is_statistic(name) for name in teacher_before)
    assert all(parameter.grad is None for parameter in teacher.parameters())
    owned = {id(parameter) for group in state.learner.optimizer.param_groups for parameter in group["params"]}
    assert owned == {id(p) for name, p in network.named_parameters() if name not in frozen}


@pytest.mark.parametrize("freeze", ["encoder", "encoder_but_norm"])
def test_by_default_statistics_move_unless_the_whole_encoder_is_frozen(freeze: str) -> None:
    config = distilling(BATCH_NORM_STUDENT | {"freeze": freeze, "allow_random_frozen": True})
    before = state_of(fresh_state(config).distiller.student)
    moved = changed(before, trained(config).weights)
    running = {name for name in before if is_statistic(name)}
    assert running
    assert moved & running == (set() if freeze == "encoder" else running)
    assert {"head.1.weight", "head.1.bias"} <= moved
    assert not moved & {name for name, value in before.items() if value.ndim == 4}


def test_a_frozen_teacher_is_trained_with_its_own_freeze() -> None:
    teacher = BATCH_NORM_STUDENT | {"freeze": "encoder", "allow_random_frozen": True, "epochs": 2}
    config = distilling({"model": "lenet5_student"}, teacher=teacher)
    moved = changed(state_of(fresh_state(config).teachers[0].network), trained(teacher_recipe(config)).weights)
    assert moved == {"head.1.weight", "head.1.bias"}
