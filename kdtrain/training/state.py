"""TrainState: a training in progress, and all of it that a checkpoint has."""

import json
from functools import partial

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from kdtrain.config.recipe import BatchNorm, Recipe
from kdtrain.config.training import Adam, Constant
from kdtrain.data.base import Dataset
from kdtrain.errors import UserError
from kdtrain.methods.base import MethodContext
from kdtrain.methods.critic import CriticPlayer
from kdtrain.models.build import build
from kdtrain.models.classifier import Classifier
from kdtrain.models.freezing import has_randomness
from kdtrain.models.sync_batch_norm import over_global_batch, trains_batch_norm
from kdtrain.models.weights import at
from kdtrain.runtime import distributed, process
from kdtrain.runtime.rng import stream
from kdtrain.teacher.network import Teacher
from kdtrain.teacher.outputs import LiveTeacher, TeacherOutputs
from kdtrain.training.distiller import Distiller
from kdtrain.training.ema import ModelEma
from kdtrain.training.epoch_metrics import EpochProgress, Metrics
from kdtrain.training.learner import Learner
from kdtrain.training.loader import BatchLoader
from kdtrain.training.precision import autocast
from kdtrain.trials.outcome import merit


class TrainState:
    """The one object that changes. `checkpoint` is all of it that is not derived from the recipe."""

    def __init__(
        self,
        recipe: Recipe,
        data: Dataset,
        teacher: Teacher | None,
        device: torch.device,
        *,
        pretrained: bool = True,
        loaders: int = 0,
    ) -> None:
        """pretrained=False: fresh weights whatever the recipe says, where only time or memory is asked for.
        loaders: processes that make views; see BatchLoader."""
        self.recipe, self.data, self.teacher, self.device = recipe, data, teacher, device
        process.use_precision(recipe.precision, device)
        seed = stream(recipe.seed, "init")
        student = build(recipe.student, data.image_shape, len(data.classes), seed, pretrained=pretrained)
        setting = method_context(recipe, data, student, teacher)
        require_statistics(recipe, data, student, device, "recipe.batch_size")
        self.distiller = _distiller(recipe, student, setting, device).to(device)
        self.wrapped = _in_group(self.distiller, device, recipe.batch_norm)
        steps_per_epoch = -(-len(data.train) // recipe.batch_size)
        self.learner = Learner(
            self.distiller, recipe.optimizer, recipe.lr_schedule, recipe.clipping, recipe.epochs, steps_per_epoch,
            torch.amp.GradScaler(device.type) if recipe.precision == "fp16" else None,
        )  # fmt: skip
        self.ema = ModelEma(student, recipe.ema) if recipe.ema else None
        self.critic: CriticPlayer | None = recipe.method.critic(setting)
        self.critic_learner: Learner | None = None
        if self.critic is not None:
            critic_loss = self.critic.loss.to(device)
            self.wrapped_critic = _in_group(critic_loss, device, recipe.batch_norm)
            adam, constant = Adam(name="adam", lr=self.critic.lr), Constant(name="constant")
            self.critic_learner = Learner(critic_loss, adam, constant, None, recipe.epochs, steps_per_epoch)
        self.teacher_outputs: TeacherOutputs | None = None
        if teacher is not None:
            self.teacher_outputs = LiveTeacher(
                teacher, recipe, data, device, partial(autocast, recipe.precision, device)
            )
        self.loader = BatchLoader(
            data.train, device, seed=recipe.seed, batch_size=recipe.batch_size, mixup=recipe.mixup, loaders=loaders
        )
        self.epoch = 0
        self.step = 0
        self.progress = EpochProgress(0)
        self.best: Metrics | None = None
        self.best_weights: dict[str, Tensor] = {}
        self.teacher_val_logits: Tensor | None = None

    @property
    def evaluated(self) -> torch.nn.Module:
        """The network that is judged and kept: the student, or its moving average."""
        return self.ema.module if self.ema is not None else self.distiller.student

    def remember_best(self, metrics: Metrics) -> None:
        """Keeps epoch and weights if the objective is better than ever; ties by the other metric, then the earlier."""
        own = {"epoch": self.epoch, **{key: metrics[key] for key in ("val/accuracy", "val/nll")}}
        objective = self.recipe.objective
        if self.best is None or merit(own, objective) > merit(self.best, objective):
            self.best = own
            self.best_weights = {name: value.detach().clone() for name, value in self.evaluated.state_dict().items()}

    def checkpoint(self) -> bytes:
        """Everything that resuming needs, as one safetensors file."""
        tensors = self._state_tensors()
        within = {name: getattr(self.progress, name) for name in WITHIN_EPOCH}
        progress = {"epoch": self.epoch, "step": self.step, "best": self.best, "within_epoch": within}
        contiguous = {name: value.contiguous() for name, value in tensors.items()}
        return safetensors.torch.save(contiguous, {"progress": json.dumps(progress)})

    def checkpoint_bytes(self) -> int:
        """How large `checkpoint()` is, but for the names in it; nothing is copied."""
        return sum(value.nbytes for value in self._state_tensors().values())

    def restore(self, checkpoint: bytes) -> None:
        """Continues from `checkpoint()`, bit for bit."""
        tensors = safetensors.torch.load(checkpoint)
        header_bytes = int.from_bytes(checkpoint[:8], "little")
        progress = json.loads(json.loads(checkpoint[8 : 8 + header_bytes])["__metadata__"]["progress"])
        self.epoch, self.step, self.best = progress["epoch"], progress["step"], progress["best"]
        terms = {name: values.tolist() for name, values in _below("terms.", tensors).items()}
        within = {name: value for name, value in progress["within_epoch"].items() if name in WITHIN_EPOCH}
        self.progress = EpochProgress(self.epoch, terms=terms, **within)
        self.best_weights = {name: value.to(self.device) for name, value in _below("best.", tensors).items()}
        for part, owner in self._parts():
            owner.load_state_tensors(_below(f"{part}.", tensors))

    def _state_tensors(self) -> dict[str, Tensor]:
        tensors = {
            f"{part}.{name}": value for part, owner in self._parts() for name, value in owner.state_tensors().items()
        }
        tensors |= {f"best.{name}": value for name, value in self.best_weights.items()}
        return tensors | {f"terms.{name}": value for name, value in self.progress.state_tensors().items()}

    def _parts(self) -> list[tuple[str, Learner | ModelEma]]:
        """What holds state, by the name under which a checkpoint has it."""
        parts: dict[str, Learner | ModelEma | None] = {
            "learner": self.learner, "critic": self.critic_learner, "ema": self.ema
        }  # fmt: skip
        return [(name, part) for name, part in parts.items() if part is not None]


WITHIN_EPOCH = ("steps", "spent", "images")


def method_context(recipe: Recipe, data: Dataset, student: Classifier, teacher: Teacher | None) -> MethodContext:
    """What the recipe's method is built for: the shapes of its stages are measured in both networks."""
    stages = recipe.method.needed_stages
    with at("recipe.method"):
        student_shapes = student.stage_shapes(stages)
        teacher_shapes = teacher.network.stage_shapes(stages) if teacher else {}
    return MethodContext(
        classes=len(data.classes),
        batch_size=recipe.batch_size,
        label_smoothing=recipe.label_smoothing,
        seed=recipe.seed,
        student_shapes=student_shapes,
        teacher_shapes=teacher_shapes,
    )


def _distiller(recipe: Recipe, student: Classifier, setting: MethodContext, device: torch.device) -> Distiller:
    with torch.random.fork_rng(devices=[]):  # a projector's or generator's first weights
        torch.manual_seed(stream(recipe.seed, "criterion"))
        criterion = recipe.method.criterion(setting)
    if device.type == "cuda":  # a CPU's convolutions are faster with contiguous weights of a generator
        criterion = criterion.to(memory_format=student.layout)
    r_drop = recipe.r_drop
    if r_drop is None:
        return Distiller(student, criterion, recipe.method.needed_stages)
    if not has_randomness(student):
        model = recipe.student.model
        raise UserError(f"recipe.r_drop: compares two passes with dropout, and {model} has none; write student.dropout")
    published = r_drop.convention == "published"
    return Distiller(student, criterion, recipe.method.needed_stages, r_drop.weight, summed=published)


def require_statistics(recipe: Recipe, data: Dataset, student: Classifier, device: torch.device, place: str) -> None:
    """No batch, and no worker's share where it has statistics of its own, may be one image where that has none.
    `place` is where the batch size is written."""
    total, workers = len(data.train), distributed.size()
    last = (total - 1) % recipe.batch_size + 1
    alone = recipe.batch_norm == "per_worker"
    shared = f", shared by {workers} workers" if workers > 1 else ""
    left = f"{place}: {recipe.batch_size} leaves {last} of {total} images for the last batch{shared}"
    norm = student.norm_over_images() if last < (2 * workers if alone else 2) else None
    if norm is not None:
        raise UserError(
            f"{left}, and of one image the batch normalisation {norm} of {student.name} has no statistics; choose "
            "another"
        )
    if not alone and last < workers and device.type != "cpu" and trains_batch_norm(student.train()):
        raise UserError(f"{left}, and on a GPU batch normalisation needs an image on each; choose another")


def _in_group(module: torch.nn.Module, device: torch.device, batch_norm: BatchNorm) -> torch.nn.Module:
    """The module itself, or with several workers the one whose gradients are averaged over them."""
    if distributed.size() == 1:
        return module
    if batch_norm == "global":
        over_global_batch(module, device)
    # before every forward all take the buffers of rank 0: statistics per worker differ, global ones are equal anyway
    return torch.nn.parallel.DistributedDataParallel(module)


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
