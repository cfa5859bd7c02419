"""The training loop, from top to bottom: fit -> train_epoch -> train_step, then evaluate."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from kdtrain.data.mixup import label_mass, mixed, mixed_target
from kdtrain.data.sampling import label_weights
from kdtrain.methods.base import Batch, LossTerm, Outputs, weighted_sum
from kdtrain.runtime import distributed
from kdtrain.runtime.device import seed_generators, to_device
from kdtrain.runtime.rng import stream
from kdtrain.teacher.outputs import TeacherOutputs
from kdtrain.training.epoch_metrics import EpochProgress, Metrics, NonFiniteLoss
from kdtrain.training.evaluation import logits_of, pair_metrics, student_metrics
from kdtrain.training.learner import Learner
from kdtrain.training.optimizers import early_stop
from kdtrain.training.precision import autocast
from kdtrain.training.state import TrainState
from kdtrain.trials.outcome import SKIPPED

Report = Callable[[Metrics, TrainState], None]
Checkpoint = Callable[[TrainState], None]


def fit(
    state: TrainState,
    total_epochs: int,
    report: Report,
    *,
    checkpoint: Checkpoint = lambda state: None,
    every_steps: int | None = None,
) -> None:
    """Train until `total_epochs` are done or early stopping ends the training.

    `report` is called once after every epoch, `checkpoint` after each `every_steps` steps within one, both on every
    rank.

    Raises:
        NonFiniteLoss: A loss term is NaN or infinite, on all ranks alike, at the latest at the end of the epoch.
    """
    while state.epoch < total_epochs and not _stops_early(state):
        state.progress.mark(_costs(state))
        metrics = train_epoch(state, checkpoint, every_steps)
        metrics |= evaluate(state)
        _require_finite(metrics, state)
        state.epoch += 1
        state.remember_best(metrics)
        state.progress.advance(_costs(state))
        metrics |= {"images": len(state.data.train), **state.progress.spent}
        state.progress = EpochProgress(state.epoch)
        report({"epoch": state.epoch, "step": state.step, **metrics}, state)


def train_epoch(
    state: TrainState, checkpoint: Checkpoint = lambda state: None, every_steps: int | None = None
) -> Metrics:
    """Train the rest of this epoch; return its first learning rate and the mean of each loss term over all ranks."""
    state.distiller.train()
    if state.teacher_outputs is not None:
        state.teacher_outputs.begin(state.epoch)
    batches = state.loader.batches(state.epoch)
    lr = state.learner.lr(state.step - state.progress.steps)
    for epoch_step in range(state.progress.steps, len(batches)):
        indices = batches[epoch_step]
        state.progress.add(state.step, train_step(state, indices, epoch_step), len(indices))
        state.step += 1
        if every_steps and state.progress.steps % every_steps == 0 and state.progress.steps < len(batches):
            state.progress.advance(_costs(state))
            checkpoint(state)
    return {"lr": lr, **state.progress.means()}


def train_step(state: TrainState, indices: Tensor, epoch_step: int = 0) -> dict[str, Tensor]:
    """Make one update from one global batch: of the student, or of the critic if it is the critic's turn.

    Return each loss term, a mean over this rank's images, still on the device: no step waits for it.
    """
    images, batch = load_batch(state, indices, epoch_step)
    teacher = state.teacher_outputs.of(images, batch) if state.teacher_outputs else None
    seed_generators(state.device, stream(state.recipe.seed, "dropout", state.step, distributed.rank()))
    if state.critic is not None and state.critic.turns.is_critics(batch.step, batch.epoch_step):
        assert teacher is not None
        return _critic_step(state, images, teacher, batch)
    return _student_step(state, images, teacher, batch)


def _student_step(state: TrainState, images: Tensor, teacher: Outputs | None, batch: Batch) -> dict[str, Tensor]:
    # the critic is a frozen argument, so that the student's DDP does not own it
    critic = state.critic.loss.critic.requires_grad_(False) if state.critic is not None else None
    with autocast(state.recipe.precision, state.device), distributed.idle(batch.count == 0):
        terms = state.wrapped(images, teacher, batch, critic)
    if critic is not None:
        critic.requires_grad_(True)
    values = _update(state.learner, terms, batch, "loss", state.step)
    state.distiller.student.constrain()
    if state.ema is not None:
        state.ema.update(state.distiller.student)
    return values


def _critic_step(state: TrainState, images: Tensor, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
    assert state.critic is not None
    with autocast(state.recipe.precision, state.device), distributed.idle(batch.count == 0):
        student_NK = _logits_without_buffers(state.distiller.student, images)
    terms = state.critic.wrapped(student_NK, teacher.logits, batch)
    values = _update(state.critic.learner, terms, batch, "critic_loss", state.step)
    state.critic.loss.constrain()
    return values


def load_batch(state: TrainState, indices: Tensor, epoch_step: int) -> tuple[Tensor, Batch]:
    """Return this rank's views [N, C, H, W] of a global batch, mixed if the recipe says so, and its Batch."""
    labels = state.data.train.labels
    part = state.loader.part(indices, state.epoch, epoch_step, state.step)
    images, partners = state.loader.images(part, state.epoch, epoch_step, state.step)
    target = labels[part.indices]
    mean_label_weight = label_weights(labels[indices], state.class_weights).mean().item()
    if partners is not None:
        assert part.partners is not None
        assert part.shares is not None
        assert part.all_pairs is not None
        images = mixed(images, partners, part.shares)
        target = mixed_target(target, labels[part.partners], part.shares, len(state.data.classes))
        mass = label_mass(labels[indices], labels[part.all_pairs.partners], part.all_pairs.shares)
        mean_label_weight = mass.double().mean().item()
    batch = Batch(
        to_device(target, state.device), part.indices, state.recipe.seed, state.epoch, state.step, epoch_step,
        size=len(indices), count=part.count, mean_label_weight=mean_label_weight,
    )  # fmt: skip
    return images, batch


def evaluate(state: TrainState) -> Metrics:
    """Return validation metrics of the evaluated network and, with a teacher, metrics that compare the two."""
    split, recipe = state.data.val, state.recipe
    logits = logits_of(state.evaluated, split, state.device)
    metrics = {f"val/{name}": value for name, value in student_metrics(logits, split.labels).items()}
    teacher = None
    if state.teacher_outputs is not None:
        teacher = _teacher_val_logits(state, state.teacher_outputs)
        metrics["val/teacher_accuracy"] = student_metrics(teacher, split.labels)["accuracy"]
        pair = pair_metrics(logits, teacher, recipe.seed, state.epoch, recipe.batch_size)
        metrics |= {f"val/{name}": value for name, value in pair.items()}
    if recipe.method.per_image_loss:
        metrics |= _validation_loss(state, logits, teacher)
    return metrics


def _teacher_val_logits(state: TrainState, outputs: TeacherOutputs) -> Tensor:
    """Return the teacher's logits [N, K] of the validation split, computed once per training."""
    if state.teacher_val_logits is None:
        requested = outputs.requested
        state.teacher_val_logits = outputs.val_logits()
        # a resumed training computes them again; count them in the first epoch only, so that rows do not show the cut
        own = len(distributed.share(torch.arange(len(state.data.val))))
        outputs.requested = requested + (own if state.epoch == 0 else 0)
    return state.teacher_val_logits


@torch.no_grad()
def _validation_loss(state: TrainState, logits: Tensor, teacher: Tensor | None) -> Metrics:
    """Return the method's loss and its terms on the whole validation split, from both networks' logits [N, K]."""
    split, recipe = state.data.val, state.recipe
    batch = Batch(
        split.labels, torch.arange(len(split)), recipe.seed, state.epoch, state.step, size=len(split), count=len(split),
        mean_label_weight=label_weights(split.labels, state.class_weights).mean().item(),
    )  # fmt: skip
    terms = state.distiller.criterion(Outputs(logits), Outputs(teacher) if teacher is not None else None, batch)
    values = {"loss": weighted_sum(terms), **{name: term.value for name, term in terms.items()}}
    return {f"val/{name}": value.item() for name, value in values.items()}


def _update(learner: Learner, terms: dict[str, LossTerm], batch: Batch, name: str, step: int) -> dict[str, Tensor]:
    loss = weighted_sum(terms)
    # DDP averages over ranks: this factor makes the average the mean over the global batch
    factor = batch.count * distributed.size() / batch.size
    skipped = learner.update(loss * factor if factor != 1 else loss, step)
    values = {name: loss, **{key: term.value for key, term in terms.items()}}
    return values if skipped is None else {**values, SKIPPED: skipped}


@torch.no_grad()
def _logits_without_buffers(student: torch.nn.Module, images: Tensor) -> Tensor:
    """Return logits [N, K] as in training without moving the student's BatchNorm buffers: it is the critic's turn."""
    buffers = {name: buffer.clone() for name, buffer in student.named_buffers()}
    logits: Tensor = torch.func.functional_call(student, buffers, (images,))
    return logits


def _costs(state: TrainState) -> Metrics:
    """Return what views and teacher outputs have cost so far: images of all ranks, seconds of this rank."""
    costs: Metrics = {"views_seconds": state.loader.seconds}
    outputs = state.teacher_outputs
    counts = (outputs.requested, outputs.computed, outputs.checked) if outputs is not None else (0, 0, 0)
    of_all_ranks = distributed.sum_over_ranks(to_device(torch.tensor(counts), state.device)).tolist()
    names = ("teacher_images", "teacher_images_computed", "teacher_images_checked")
    costs |= dict(zip(names, of_all_ranks, strict=True))
    if outputs is not None:
        costs |= {"teacher_seconds": outputs.seconds, "teacher_forward_seconds": outputs.forward_seconds}
    return costs


def _stops_early(state: TrainState) -> bool:
    return state.best is not None and early_stop(int(state.best["epoch"]), state.epoch, state.recipe.early_stopping)


def _require_finite(metrics: Metrics, state: TrainState) -> None:
    broken = [f"{name} is {value}" for name, value in metrics.items() if not math.isfinite(value)]
    if broken:
        raise NonFiniteLoss(f"epoch {state.epoch + 1}, after step {state.step - 1}: {', '.join(broken)}")
