"""A TrainState in the middle of a training, to be looked at; and the proof that a training can be cut off anywhere."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from trainings import CPU, NO_DATA, equal_weights, timeless, trained

from kdtrain.config.recipe import Recipe
from kdtrain.data.registry import load
from kdtrain.models.classifier import Classifier
from kdtrain.runtime.process import prepare_process
from kdtrain.teacher.network import Teacher, untrained_teacher
from kdtrain.training.assembly import assemble
from kdtrain.training.epoch_metrics import Metrics
from kdtrain.training.learner import Learner
from kdtrain.training.loop import fit
from kdtrain.training.state import TrainState
from kdtrain.trials.store import Store

BATCH_NORM_STUDENT = {"model": "test_resnet", "weights": None}
"""timm's own for tests: 374 thousand parameters, BatchNorm throughout."""


def fresh_run(config: Recipe) -> TrainState:
    """Before its first epoch. The teacher has random weights: it has not been trained."""
    prepare_process(1)
    data = load(config.data, NO_DATA)
    teacher = None
    if config.teacher is not None:
        teacher = Teacher(untrained_teacher(config.teacher, data), CPU, config.method.needed_stages)
    return assemble(config, data, teacher, CPU)


def fitted(run: TrainState) -> list[Metrics]:
    """The rows of the whole training."""
    rows: list[Metrics] = []
    fit(run, run.recipe.epochs, lambda metrics, run: rows.append(metrics))
    return rows


def state_of(owner: nn.Module | Learner) -> dict[str, Tensor]:
    """A copy of all parameters and buffers, of a learner's optimizer too."""
    tensors = owner.state_tensors() if isinstance(owner, Learner) else dict(owner.state_dict())
    return {name: value.detach().clone() for name, value in tensors.items()}


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    """The names of what is not equal bit for bit."""
    return {name for name in before.keys() | after.keys() if name not in before or name not in after
            or not torch.equal(before[name], after[name])}  # fmt: skip


def require_resumable(config: Recipe, folder: Path) -> None:
    """Killed after any epoch and continued equals uninterrupted, bit for bit."""
    straight = trained(config, folder / "straight")
    ran = len(straight.checkpoints)
    assert straight.outcome["state"] == "complete"
    for epoch in range(1, ran + 1):

        def kill(metrics: Metrics, last: int = epoch) -> None:
            if metrics["epoch"] == last:
                raise KeyboardInterrupt

        results = folder / f"cut {epoch}"
        with pytest.raises(KeyboardInterrupt):
            trained(config, results, on_epoch=kill)
        assert Store(results).trial(straight.folder.trial_id).outcome() is None
        continued = trained(config, results)
        assert continued.checkpoints == straight.checkpoints[epoch:]
        assert continued.rows == straight.rows
        assert equal_weights(continued.weights, straight.weights)
        ours, theirs = timeless(continued.outcome), timeless(straight.outcome)
        assert ours == theirs


def watched_inputs(network: Classifier) -> tuple[list[Tensor], list[Tensor]]:
    """Fill as the network is used: the images that it is given, and what its encoder gets of them."""
    given: list[Tensor] = []
    encoded: list[Tensor] = []
    normalize = network.normalize

    def watch(images: Tensor) -> Tensor:
        given.append(images.detach().clone())
        return normalize(images)

    network.normalize = watch  # type: ignore[method-assign]
    network.encoder.register_forward_pre_hook(lambda _, inputs: encoded.append(inputs[0].detach().clone()))
    return given, encoded
