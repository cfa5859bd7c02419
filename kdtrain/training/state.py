"""TrainState: a training in progress. It is the only object that changes."""

import json
from dataclasses import dataclass, field
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from kdtrain.config.recipe import Recipe
from kdtrain.data.base import Dataset
from kdtrain.methods.critic import CriticLoss, Turns
from kdtrain.teacher.network import Teacher
from kdtrain.teacher.outputs import TeacherOutputs
from kdtrain.training.distiller import Distiller
from kdtrain.training.ema import ModelEma
from kdtrain.training.epoch_metrics import EpochProgress, Metrics
from kdtrain.training.learner import Learner
from kdtrain.training.loader import BatchLoader
from kdtrain.trials.objectives import objectives_of, ranking_key

WITHIN_EPOCH = ("steps", "spent", "images")
"""The fields of EpochProgress that a checkpoint within an epoch needs."""


@dataclass(frozen=True)
class CriticState:
    """The second player of an adversarial method: its loss, whose turn a step is, the loss under DDP, its optimizer."""

    loss: CriticLoss
    turns: Turns
    wrapped: nn.Module
    learner: Learner


@dataclass
class TrainState:
    """What `fit` trains; `assembly.assemble` builds it.

    A checkpoint has everything that is not derived from the recipe: learners, moving average, counters, the epoch's
    terms so far, the best epoch and its weights.
    """

    recipe: Recipe
    data: Dataset
    device: torch.device
    teachers: tuple[Teacher, ...]
    distiller: Distiller
    wrapped: nn.Module  # the distiller, under DDP with several workers; must exist until backward has run
    learner: Learner
    loader: BatchLoader
    ema: ModelEma | None
    critic: CriticState | None
    teacher_outputs: TeacherOutputs | None
    class_weights: Tensor | None  # [K], on the CPU
    teacher_val_logits: Tensor | None = None  # [N, K], once they are known
    epoch: int = 0  # done
    step: int = 0  # updates done
    progress: EpochProgress = field(default_factory=lambda: EpochProgress(0))
    best: Metrics | None = None  # epoch and validation metrics of the best epoch so far
    best_weights: dict[str, Tensor] = field(default_factory=dict)  # of the evaluated network, after that epoch

    @property
    def evaluated(self) -> nn.Module:
        """The network that is evaluated and kept: the student, or its moving average."""
        return self.ema.module if self.ema is not None else self.distiller.student

    def remember_best(self, metrics: Metrics) -> None:
        """Keep epoch and weights if the objective is the best so far; ties: see `ranking_key`, then earlier epoch."""
        own = {"epoch": self.epoch, **objectives_of(metrics)}
        objective = self.recipe.objective
        if self.best is None or ranking_key(own, objective) > ranking_key(self.best, objective):
            self.best = own
            self.best_weights = {name: value.detach().clone() for name, value in self.evaluated.state_dict().items()}

    def checkpoint(self) -> bytes:
        """Return everything that resuming needs, as one safetensors file."""
        within = {name: getattr(self.progress, name) for name in WITHIN_EPOCH}
        progress = {"epoch": self.epoch, "step": self.step, "best": self.best, "within_epoch": within}
        contiguous = {name: value.contiguous() for name, value in self._tensors().items()}
        return safetensors.torch.save(contiguous, {"progress": json.dumps(progress)})

    def checkpoint_bytes(self) -> int:
        """Return the size of `checkpoint()` without its header; nothing is copied."""
        return sum(value.nbytes for value in self._tensors().values())

    def restore(self, checkpoint: bytes) -> None:
        """Continue from `checkpoint()`, bit for bit."""
        tensors, progress = safetensors.torch.load(checkpoint), _progress_of(checkpoint)
        self.epoch, self.step, self.best = progress["epoch"], progress["step"], progress["best"]
        terms = {name: values.tolist() for name, values in _below("terms.", tensors).items()}
        self.progress = EpochProgress(self.epoch, terms=terms, **progress["within_epoch"])
        self.best_weights = {name: value.to(self.device) for name, value in _below("best.", tensors).items()}
        for name, owner in self._stateful().items():
            owner.load_state_tensors(_below(f"{name}.", tensors))

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {
            f"{part}.{name}": value
            for part, owner in self._stateful().items()
            for name, value in owner.state_tensors().items()
        }
        tensors |= {f"best.{name}": value for name, value in self.best_weights.items()}
        return tensors | {f"terms.{name}": value for name, value in self.progress.state_tensors().items()}

    def _stateful(self) -> dict[str, Learner | ModelEma]:
        """The parts that hold tensors, by their name in a checkpoint."""
        critic = self.critic.learner if self.critic is not None else None
        parts: dict[str, Learner | ModelEma | None] = {"learner": self.learner, "critic": critic, "ema": self.ema}
        return {name: part for name, part in parts.items() if part is not None}


def epoch_of(checkpoint: bytes) -> int:
    """Return the number of epochs that were done when a checkpoint was made."""
    return int(_progress_of(checkpoint)["epoch"])


def _progress_of(checkpoint: bytes) -> dict[str, Any]:
    header_bytes = int.from_bytes(checkpoint[:8], "little")
    progress: dict[str, Any] = json.loads(json.loads(checkpoint[8 : 8 + header_bytes])["__metadata__"]["progress"])
    return progress


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
