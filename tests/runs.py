"""A TrainState in the middle of a training, for tests that look into it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from trainings import CPU, NO_DATA

from kdtrain.config.recipe import Recipe
from kdtrain.data.base import HIDDEN, Dataset
from kdtrain.data.registry import load
from kdtrain.models.classifier import Classifier
from kdtrain.teacher.network import Teacher, untrained_teacher
from kdtrain.training.assembly import assemble
from kdtrain.training.epoch_metrics import Metrics
from kdtrain.training.learner import Learner
from kdtrain.training.loop import fit
from kdtrain.training.state import TrainState

BATCH_NORM_STUDENT = {"model": "test_resnet", "weights": None}
"""timm's own for tests: 374 thousand parameters, BatchNorm throughout."""


def fresh_state(config: Recipe, data_root: Path = NO_DATA, device: torch.device = CPU) -> TrainState:
    """Return the state before the first step, in training mode. The teacher has random weights."""
    return state_on(load(config.data, data_root), config, device)


def state_on(data: Dataset, config: Recipe, device: torch.device = CPU, **options: Any) -> TrainState:
    """Return the state of a training on this data, as `fresh_state`."""
    teacher = None
    if config.teacher is not None:
        network = untrained_teacher(config.teacher, data)
        teacher = Teacher(network, device, config.method.needed_stages, digest="random weights")
    state = assemble(config, data, teacher, device, **options)
    state.distiller.train()
    return state


def hiding(data: Dataset, hidden: Tensor) -> Dataset:
    """Return the data with hidden labels of these training images."""
    labels = data.train.labels.index_fill(0, hidden, HIDDEN)
    return replace(data, train=replace(data.train, labels=labels))


def fitted(state: TrainState) -> list[Metrics]:
    """Train to the end and return the rows."""
    rows: list[Metrics] = []
    fit(state, state.recipe.epochs, lambda metrics, state: rows.append(metrics))
    return rows


def state_of(owner: nn.Module | Learner) -> dict[str, Tensor]:
    """Return a copy of all parameters and buffers, of a learner's optimizer too."""
    tensors = owner.state_tensors() if isinstance(owner, Learner) else dict(owner.state_dict())
    return {name: value.detach().clone() for name, value in tensors.items()}


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    """Return the names of what is not equal bit for bit."""
    return {name for name in before.keys() | after.keys() if name not in before or name not in after
            or not torch.equal(before[name], after[name])}  # fmt: skip


def float32_settings() -> tuple[str, ...]:
    """Return how float32 is multiplied by cuDNN's convolutions and by all else that may round it."""
    cuda, cudnn, mkldnn = torch.backends.cuda, torch.backends.cudnn, torch.backends.mkldnn
    others = (cuda.matmul, mkldnn.matmul, mkldnn.conv, mkldnn.rnn)
    return (cudnn.conv.fp32_precision, *(each.fp32_precision for each in others))


def watched_inputs(network: Classifier) -> tuple[list[Tensor], list[Tensor]]:
    """Return two lists that the network fills when it is used: its images, and its encoder's inputs."""
    given: list[Tensor] = []
    encoded: list[Tensor] = []
    normalize = network.normalize

    def watch(images: Tensor) -> Tensor:
        given.append(images.detach().clone())
        return normalize(images)

    network.normalize = watch  # type: ignore[method-assign]
    network.encoder.register_forward_pre_hook(lambda _, inputs: encoded.append(inputs[0].detach().clone()))
    return given, encoded
