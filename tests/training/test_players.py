"""Two players in a real training: who moves in whose turn, what the rows say, what is resumed."""

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from runs import BATCH_NORM_STUDENT, changed, fitted, fresh_state, state_of
from trainings import recipe, trained, workspace

from kdtrain.errors import UserError
from kdtrain.training.epoch_metrics import Metrics
from kdtrain.training.loop import NonFiniteLoss, fit, train_step
from kdtrain.training.preflight import smoke

METHOD: dict[str, Any] = {
    "name": "logits_discriminator", "temperature": 1.5, "balance": {"alpha": 0.5}, "critic_steps": 3, "student_steps": 2
}  # fmt: skip
TEACHER = {"model": "lenet5_teacher", "epochs": 1}
ADVERSARIAL: dict[str, Any] = {"teacher": TEACHER, "method": METHOD, "epochs": 3}


def adversarial(student: dict[str, Any] | None = None, **other: Any) -> dict[str, Any]:
    return ADVERSARIAL | {"method": METHOD | other} | ({"student": student} if student else {})


PUBLISHED = adversarial(convention="published")
STUDENTS = {"lenet5": {"model": "lenet5_student"}, "batch norm": BATCH_NORM_STUDENT}


@pytest.mark.parametrize("student", STUDENTS.values(), ids=STUDENTS)
def test_in_each_turn_one_player_moves_and_the_other_stays_bit_for_bit(student: dict[str, Any]) -> None:
    state = fresh_state(recipe(**adversarial(student)))
    assert state.critic.learner is not None
    players = {"student": state.learner, "critic": state.critic.learner}
    weights = {f"module.{name}" for name, _ in state.distiller.named_parameters()}
    buffers = {f"module.{name}" for name, _ in state.distiller.named_buffers()} & state_of(state.learner).keys()
    assert bool(buffers) is (student is BATCH_NORM_STUDENT)
    ever_moved: set[str] = set()
    for step in range(12):
        before = {name: state_of(player) for name, player in players.items()}
        values = train_step(state, torch.arange(16 * step, 16 * step + 16) % 60)
        state.step += 1
        moved = {name: changed(before[name], state_of(player)) for name, player in players.items()}
        if step % 5 < 3:
            assert moved["student"] == set(), step
            assert {"module.critic.score.weight", "module.critic.layers.0.weight"} < moved["critic"]
            assert values.keys() == {"critic_loss", "critic_gap", "gradient_penalty"}
        else:
            assert moved["critic"] == set(), step
            assert buffers <= moved["student"]
            ever_moved |= moved["student"]
            assert values.keys() == {"loss", "cross_entropy", "adversarial"}
    assert weights <= ever_moved


def test_no_gradient_is_left_on_the_other_player() -> None:
    state = fresh_state(recipe(**adversarial()))
    critic = state.critic.loss.critic
    train_step(state, torch.arange(16))
    assert all(parameter.grad is None for parameter in state.distiller.parameters())
    assert all(parameter.grad is not None for parameter in critic.parameters())
    own = [parameter.grad.clone() for parameter in critic.parameters()]
    state.step = 3
    train_step(state, torch.arange(16))
    assert all(torch.equal(a, p.grad) for a, p in zip(own, critic.parameters(), strict=True))
    assert all(parameter.requires_grad for parameter in critic.parameters())


def test_published_both_players_move_in_both_turns_by_one_optimizer() -> None:
    state = fresh_state(recipe(**PUBLISHED))
    assert state.critic is None
    for step, terms in enumerate([{"cross_entropy", "critic_gap"}] * 3 + [{"cross_entropy", "adversarial"}] * 2):
        before = state_of(state.distiller)
        values = train_step(state, torch.arange(16), step)
        state.step += 1
        moved = changed(before, state_of(state.distiller))
        assert {"criterion.critic.score.weight", "student.head.4.weight"} < moved, step
        assert values.keys() == terms | {"loss"}


def test_the_critics_update_is_adams_with_its_own_learning_rate() -> None:
    state = fresh_state(recipe(**adversarial(critic_training={"lr": 0.02})))
    before = state_of(state.critic.loss.critic)
    train_step(state, torch.arange(16))
    for name, parameter in state.critic.loss.critic.named_parameters():
        gradient = parameter.grad
        first_step = -0.02 * gradient / (gradient.abs() + 1e-8)
        torch.testing.assert_close(parameter.detach(), before[name] + first_step, rtol=1e-5, atol=1e-7)


def test_the_critic_learns_to_tell_the_two_apart_while_the_student_waits() -> None:
    free = {"lr": 0.01, "lipschitz": {"name": "none"}}
    state = fresh_state(recipe(**adversarial(critic_steps=59, critic_training=free) | {"epochs": 15}))
    before = state_of(state.distiller)
    rows: list[Metrics] = []
    fit(state, 14, lambda metrics, state: rows.append(metrics))
    assert changed(before, state_of(state.distiller)) == set()
    gaps = [row["train/critic_gap"] for row in rows]
    assert gaps[-1] > gaps[0]
    assert gaps[-1] > 0
    assert not any("train/loss" in row or "train/cross_entropy" in row for row in rows)
    assert len({row["val/nll"] for row in rows}) == 1


def test_the_rows_are_means_over_the_images_of_each_players_own_turns() -> None:
    state = fresh_state(recipe(**adversarial()))
    seen: list[dict[str, tuple[float, int]]] = []

    def keep(module, arguments, terms) -> None:
        of = next(each for each in arguments if hasattr(each, "epoch_step"))
        epoch = {name: (term.value.item(), of.count) for name, term in terms.items()}
        seen.append({"epoch": (of.epoch, 0), **epoch})

    state.distiller.register_forward_hook(keep)
    state.critic.loss.register_forward_hook(keep)
    rows = fitted(state)
    assert {count for each in seen for count in (value[1] for value in each.values())} == {0, 12, 16}
    for number, row in enumerate(rows):
        turns = [each for each in seen if each["epoch"][0] == number]
        assert len(turns) == 4
        for name in ("cross_entropy", "adversarial", "critic_gap", "gradient_penalty"):
            own = [each[name] for each in turns if name in each]
            mean = sum(value * count for value, count in own) / sum(count for _, count in own)
            assert row[f"train/{name}"] == pytest.approx(mean, rel=1e-6), name
        critics = 10 * row["train/gradient_penalty"] - row["train/critic_gap"]
        assert row["train/critic_loss"] == pytest.approx(critics, rel=1e-5)
        students = 0.5 * row["train/cross_entropy"] + 0.5 * row["train/adversarial"]
        assert row["train/loss"] == pytest.approx(students, rel=1e-5)


def test_a_checkpoint_has_both_players_and_the_kept_weights_the_student_alone() -> None:
    left = trained(recipe(**adversarial()))
    names = safetensors.torch.load(left.checkpoints[-1]).keys()
    assert {"critic.module.critic.score.weight", "critic.optimizer.critic.score.weight.exp_avg_sq"} < names
    assert any(name.startswith("learner.optimizer.student.") for name in names)
    assert not any("critic" in name for name in left.weights)
    published = trained(recipe(**PUBLISHED))
    assert not any("critic" in name for name in published.weights)
    assert any(
        name.startswith("learner.module.criterion.critic.")
        for name in safetensors.torch.load(published.checkpoints[-1])
    )
    assert published.outcome["parameters"] == left.outcome["parameters"]


def test_the_averaged_student_follows_the_students_updates_alone() -> None:
    state = fresh_state(recipe(**adversarial(), ema={}))
    fitted(state)
    assert state.step == 12
    assert state.ema is not None
    assert state.ema.updates == 4


def test_smoke_tries_both_turns() -> None:
    smoke(recipe(**adversarial()), workspace(Path()))
    with pytest.raises(NonFiniteLoss, match="loss"):  # of the student: the critic's has no such weight
        smoke(recipe(**adversarial(balance={"weight": 1e39})), workspace(Path()))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (adversarial(critic_steps=12), "below the 12 steps of the training, .* got 12"),
        (adversarial(critic_steps=4, restart="epoch"), "below the 4 steps of the epoch, .* got 4"),
    ],
)
def test_a_student_that_would_never_have_its_turn_is_refused(changes, sentence: str) -> None:
    with pytest.raises(UserError, match=rf"^recipe\.method\.critic_steps: must be {sentence}$"):
        smoke(recipe(**changes), workspace(Path()))
