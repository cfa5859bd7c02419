"""Half precision: what is computed in it, what stays float32, and what the gradient scaler does."""

import math
from typing import Any

import pytest
import torch
from runs import fresh_state, state_of
from trainings import CPU, KD, equal_weights, recipe, trained

from kdtrain.config.training import Clipping
from kdtrain.errors import UserError
from kdtrain.training.epoch_metrics import READ_EVERY_STEPS, EpochProgress, NonFiniteLoss
from kdtrain.training.loop import evaluate, fit, train_epoch, train_step
from kdtrain.training.precision import backend_settings
from kdtrain.training.state import TrainState

FIRST = torch.arange(16)


def slightly_too_large() -> float:
    """A scale with which the first step or two of this recipe overflow."""
    state = with_scale(fresh_state(recipe(precision="fp16")), 2.0**40)
    while train_step(state, FIRST)["skipped_steps"]:
        pass
    return 4 * state.learner.scaler.get_scale()


def with_scale(state: TrainState, scale: float) -> TrainState:
    state.learner.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    return state


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_both_networks_train_in_half_precision_and_are_judged_in_float32(precision: str, dtype: torch.dtype) -> None:
    state = fresh_state(recipe(**KD, precision=precision))
    seen: dict[str, set[torch.dtype]] = {"teacher": set(), "student": set()}
    for name, network in (("teacher", state.teachers[0].network), ("student", state.distiller.student)):
        network.head.register_forward_hook(lambda _, inputs, output, name=name: seen[name].add(output.dtype))
    terms = train_step(state, FIRST)
    assert seen == {"teacher": {dtype}, "student": {dtype}}
    assert {value.dtype for value in terms.values()} == {torch.float32}
    assert {parameter.dtype for parameter in state.distiller.parameters()} == {torch.float32}
    seen["teacher"].clear()
    seen["student"].clear()
    evaluate(state)
    assert seen == {"teacher": {torch.float32}, "student": {torch.float32}}


def test_float16_learns_what_float32_learns_but_for_rounding() -> None:
    half, full = (trained(recipe(**KD, precision=name)) for name in ("fp16", "fp32"))
    assert half.outcome["state"] == "complete"
    assert half.outcome["skipped_steps"] == 0
    assert "skipped_steps" not in full.outcome
    assert not equal_weights(half.weights, full.weights)
    for ours, theirs in zip(half.rows, full.rows, strict=True):
        assert ours["skipped_steps"] == 0
        assert "skipped_steps" not in theirs
        assert ours["train/loss"] == pytest.approx(theirs["train/loss"], rel=2e-2)


@pytest.mark.parametrize(
    "optimizer",
    [
        {"name": "sgd", "lr": 0.05, "momentum": 0.9},
        {"name": "adam", "lr": 0.01},
        {"name": "adamw", "lr": 0.01, "weight_decay": 0.1},
        {"name": "adamw", "lr": 0.01, "weight_decay": 0.1, "decay_times": "nothing"},
    ],
    ids=lambda optimizer: "-".join(map(str, optimizer.values())),
)
@pytest.mark.parametrize("clipping", [None, {"norm": 1.0}])
def test_a_step_that_overflows_is_skipped_whole_and_counted(optimizer: dict, clipping: dict | None) -> None:
    config = recipe(precision="fp16", optimizer=optimizer, clipping=clipping)
    state = with_scale(fresh_state(config), 2.0**40)
    skipped = []
    while not skipped or skipped[-1]:
        before = state_of(state.distiller.student)
        skipped.append(train_step(state, FIRST)["skipped_steps"].item())
        state.step += 1
        assert equal_weights(state_of(state.distiller.student), before) == bool(skipped[-1])
    assert len(skipped) > 2
    assert state.learner.scaler.get_scale() == 2.0 ** (40 - len(skipped) + 1)


def test_the_rows_say_how_many_steps_of_an_epoch_were_skipped() -> None:
    rows, scale = [], slightly_too_large()
    fit(with_scale(fresh_state(recipe(precision="fp16")), scale), 2, lambda metrics, state: rows.append(metrics))
    assert 0 < rows[0]["skipped_steps"] < 4
    assert rows[1]["skipped_steps"] == 0


def test_an_epoch_of_nothing_but_overflows_is_a_failure() -> None:
    state = with_scale(fresh_state(recipe(precision="fp16")), 2.0**60)
    with pytest.raises(NonFiniteLoss, match=r"^epoch 1: every one of its 4 steps overflowed in float16"):
        train_epoch(state)


def test_clipping_sees_gradients_without_their_scale() -> None:
    lr, bound = 0.1, 0.01
    config = recipe(precision="fp16", optimizer={"name": "sgd", "lr": lr}, clipping={"norm": bound})
    assert config.clipping == Clipping(norm=bound)
    state = fresh_state(config)
    before = state_of(state.distiller.student)
    train_step(state, FIRST)
    moved = math.sqrt(
        sum((state_of(state.distiller.student)[name] - before[name]).square().sum().item() for name in before)
    )
    assert moved == pytest.approx(lr * bound, rel=1e-3)


def test_a_checkpoint_carries_the_scalers_state() -> None:
    scale = slightly_too_large()
    state = with_scale(fresh_state(recipe(precision="fp16")), scale)
    train_epoch(state)
    continued = fresh_state(recipe(precision="fp16"))
    continued.restore(state.checkpoint())
    assert continued.learner.scaler.state_dict() == state.learner.scaler.state_dict()
    assert state.learner.scaler.get_scale() < scale


def test_tf32_needs_a_gpu_that_has_it() -> None:
    with (
        pytest.raises(UserError, match=r"^recipe\.precision: tf32 needs a GPU .* device is cpu; write fp32$"),
        backend_settings("tf32", CPU),
    ):
        pass


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_float32_means_float32_on_a_gpu_too_and_the_process_is_left_as_it_was(precision: Any) -> None:
    before = torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic
    with backend_settings(precision, CPU):
        assert not torch.backends.cudnn.allow_tf32
        assert not torch.backends.cuda.matmul.allow_tf32
        assert torch.backends.cudnn.deterministic
    assert before == (torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic)


def steps(progress: EpochProgress, losses: list[float]) -> None:
    for step, loss in enumerate(losses):
        progress.add(step, {"loss": torch.tensor(loss), "kd": torch.tensor(1.0)}, 4)


def test_the_first_step_whose_loss_is_no_number_is_named_with_all_its_terms_and_ends_a_long_epoch_early() -> None:
    progress = EpochProgress(2)
    steps(progress, [0.5, 0.25, math.inf, math.nan])
    with pytest.raises(NonFiniteLoss, match=r"^epoch 3, step 2: train/loss is inf, train/kd is 1$"):
        progress.means()
    progress = EpochProgress(0)
    with pytest.raises(NonFiniteLoss, match="step 5"):
        steps(progress, [0.5] * 5 + [math.nan] * READ_EVERY_STEPS)
    assert progress.steps == READ_EVERY_STEPS


@pytest.mark.parametrize("cuts", [(), (1,), (3, 7), tuple(range(11))])
def test_when_steps_are_read_changes_no_bit_of_their_mean(cuts: tuple[int, ...]) -> None:
    losses = torch.rand(11, generator=torch.Generator().manual_seed(0)).mul(1e3).tolist()
    at_once, progress = EpochProgress(0), EpochProgress(0)
    steps(at_once, losses)
    for step, loss in enumerate(losses):
        progress.add(step, {"loss": torch.tensor(loss), "kd": torch.tensor(1.0)}, 4)
        if step in cuts:
            progress.read()
    assert progress.means() == at_once.means()
