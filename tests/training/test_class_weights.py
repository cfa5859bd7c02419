"""Class weights: the loss, its gradient and the validation loss are those of torch's CrossEntropyLoss(weight)."""

from typing import Any

import pytest
import torch
from runs import fresh_state
from torch.nn import functional
from trainings import CPU, KD, NO_DATA, recipe

from kdtrain.config.needed_trainings import teacher_recipe
from kdtrain.data.registry import load
from kdtrain.errors import UserError
from kdtrain.training.evaluation import logits_of
from kdtrain.training.loop import evaluate, load_batch, train_step

WEIGHTS = [0.5, 1.0, 2.0, 3.0, 1.0, 1.0, 0.25, 1.0, 4.0, 1.0]
WEIGHTED: dict[str, Any] = {"class_weights": WEIGHTS, "label_smoothing": 0.1}
CRITIC = {"name": "logits_discriminator", "temperature": 1.5, "balance": {"alpha": 0.5}}
CRITIC |= {"critic_steps": 1, "student_steps": 9}
METHODS: dict[str, dict[str, Any]] = {
    "none": {},
    "kd": KD,
    "mixed images": KD | {"mixup": {}},
    "critic": KD | {"method": CRITIC},
    "published critic": KD | {"method": CRITIC | {"convention": "published"}},
}


@pytest.mark.parametrize("name", METHODS)
def test_the_loss_of_a_step_is_torchs_weighted_one(name: str) -> None:
    state = fresh_state(recipe(**METHODS[name] | WEIGHTED))
    indices = torch.tensor([3, 1, 4, 15, 9, 26])
    state.step = 1  # the student's turn
    images, batch = load_batch(state, indices, 1)
    logits = state.distiller.student(images) / (1.5 if name == "published critic" else 1.0)
    expected = functional.cross_entropy(logits, batch.target, torch.tensor(WEIGHTS), label_smoothing=0.1)
    assert batch.target.shape == ((6, 10) if "mixup" in METHODS[name] else (6,))
    terms = train_step(state, indices, 1)
    assert terms["cross_entropy"].item() == pytest.approx(expected.item(), rel=1e-6)


def test_a_step_is_the_optimizers_step_on_the_gradient_of_torchs_weighted_loss() -> None:
    config = recipe(**WEIGHTED, optimizer={"name": "sgd", "lr": 0.1})
    state, by_hand = fresh_state(config), fresh_state(config).distiller.student
    indices = torch.arange(7)
    images, batch = load_batch(state, indices, 0)
    functional.cross_entropy(
        by_hand(images), batch.target, torch.tensor(WEIGHTS), label_smoothing=0.1
    ).backward()  # fmt: skip
    train_step(state, indices)
    trained = state.distiller.student.state_dict()
    for name, parameter in by_hand.named_parameters():
        torch.testing.assert_close(trained[name], parameter.detach() - 0.1 * parameter.grad)


def test_the_validation_loss_is_weighted_too() -> None:
    state = fresh_state(recipe(**WEIGHTED))
    split = state.data.val
    logits = logits_of(state.evaluated, split, CPU)
    expected = functional.cross_entropy(logits, split.labels, torch.tensor(WEIGHTS), label_smoothing=0.1)
    assert evaluate(state)["val/cross_entropy"] == pytest.approx(expected.item(), rel=1e-6)


def test_class_weights_are_in_no_checkpoint() -> None:
    names = set(fresh_state(recipe(**WEIGHTED)).learner.state_tensors())
    assert names == set(fresh_state(recipe()).learner.state_tensors())


def test_there_is_a_weight_for_each_class_or_a_sentence() -> None:
    with pytest.raises(UserError, match=r"^recipe\.class_weights: must have a weight for each of the 10 .* got 3$"):
        fresh_state(recipe(class_weights=[1.0, 2.0, 3.0]))


def test_balanced_weights_of_equal_classes_are_one() -> None:
    state = fresh_state(recipe(class_weights="balanced"))
    assert load(recipe().data, NO_DATA).train.labels.bincount().unique().tolist() == [6]
    assert state.class_weights.tolist() == [1.0] * 10


def test_a_teacher_inherits_weights_and_sampler_unless_it_has_its_own() -> None:
    changes = {"class_weights": "balanced", "sampler": "class_balanced"}
    inherited = teacher_recipe(recipe(**KD | changes))
    assert (inherited.class_weights, inherited.sampler) == ("balanced", "class_balanced")
    own = {"class_weights": "none", "sampler": "shuffled"}
    written = teacher_recipe(recipe(**KD | changes | {"teacher": KD["teacher"] | own}))
    assert (written.class_weights, written.sampler) == ("none", "shuffled")
