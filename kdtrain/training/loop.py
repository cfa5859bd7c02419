"""The loop, read top to bottom: fit -> epoch -> train_step, then evaluate and report."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from kdtrain.data.mixup import mixed, mixed_target
from kdtrain.data.sampling import batches_of
from kdtrain.methods.base import Batch, LossTerm, Outputs, weighted_sum
from kdtrain.runtime import distributed
from kdtrain.runtime.rng import stream
from kdtrain.training.epoch_metrics import EpochProgress, Metrics, NonFiniteLoss
from kdtrain.training.evaluation import logits_of, pair_metrics, student_metrics
from kdtrain.training.learner import Learner
from kdtrain.training.loader import part_of
from kdtrain.training.optimizers import early_stop
from kdtrain.training.precision import autocast
from kdtrain.training.state import TrainState
from kdtrain.trials.outcome import SKIPPED

Report = Callable[[Metrics, TrainState], None]


def fit(
    run: TrainState,
    total_epochs: int,
    report: Report,
    *,
    checkpoint: Callable[[TrainState], None] = lambda run: None,
    every_steps: int | None = None,
) -> None:
    """Trains `run` on to `total_epochs`, or until its patience ends; report(metrics, run) is called once after every
    epoch, on every rank. checkpoint(run) is called on every rank after each `every_steps` steps within an epoch.

    Raises NonFiniteLoss, on all ranks alike, naming the step in which a term became NaN or infinite; at the latest
    when the epoch ends.
    """
    while run.epoch < total_epochs and not _out_of_patience(run):
        run.progress.mark(_spent(run))
        metrics = train_epoch(run, checkpoint, every_steps)
        metrics |= evaluate(run)
        _require_finite(metrics, run)
        run.epoch += 1
        run.remember_best(metrics)
        run.progress.advance(_spent(run))
        metrics |= {"images": len(run.data.train), **run.progress.spent}
        run.progress = EpochProgress(run.epoch)
        report({"epoch": run.epoch, "step": run.step, **metrics}, run)


def train_epoch(
    run: TrainState, checkpoint: Callable[[TrainState], None] = lambda run: None, every_steps: int | None = None
) -> Metrics:
    """The steps of this epoch that are not yet done, in its order; each term's mean over the images it was computed
    for, on all ranks. The step never waits for the device."""
    run.distiller.train()
    if run.teacher_outputs is not None:
        run.teacher_outputs.begin(run.epoch)
    batches = batches_of(run.recipe.seed, run.recipe.batch_size, len(run.data.train), run.epoch)
    lr = run.learner.lr(run.step - run.progress.steps)
    for epoch_step in range(run.progress.steps, len(batches)):
        run.progress.add(run.step, train_step(run, batches[epoch_step], epoch_step), len(batches[epoch_step]))
        run.step += 1
        if every_steps and run.progress.steps % every_steps == 0 and run.progress.steps < len(batches):
            run.progress.advance(_spent(run))
            checkpoint(run)
    return {"lr": lr, **run.progress.means()}


def train_step(run: TrainState, indices: Tensor, epoch_step: int = 0) -> dict[str, Tensor]:
    """One update from one global batch of image indices; each term, a mean over this rank's images."""
    images, batch = load_batch(run, indices, epoch_step)
    teacher = run.teacher_outputs.of(images, batch) if run.teacher_outputs else None
    _seed_dropout(run.device, stream(run.recipe.seed, "dropout", run.step, distributed.rank()))
    player = run.critic
    if player is not None and player.turns.is_critics(batch.step, batch.epoch_step):
        assert run.critic_learner is not None
        assert teacher is not None
        with autocast(run.recipe.precision, run.device), distributed.idle(batch.count == 0):
            student = _untouched_logits(run, images)
        terms = run.wrapped_critic(student, teacher.logits, batch)
        values = _update(run.critic_learner, terms, batch, "critic_loss", run.step)
        player.loss.constrain()
        return values
    critic = player.loss.critic.requires_grad_(False) if player is not None else None
    with autocast(run.recipe.precision, run.device), distributed.idle(batch.count == 0):
        terms = run.wrapped(images, teacher, batch, critic)
    if critic is not None:
        critic.requires_grad_(True)
    values = _update(run.learner, terms, batch, "loss", run.step)
    if run.ema is not None:
        run.ema.update(run.distiller.student)
    return values


def load_batch(run: TrainState, indices: Tensor, epoch_step: int) -> tuple[Tensor, Batch]:
    """This rank's views [N, C, H, W] of a global batch on the device, mixed where the recipe says so, and its Batch."""
    recipe, split = run.recipe, run.data.train
    part = part_of(indices, len(split), mixup=recipe.mixup, seed=recipe.seed, epoch=run.epoch, step=run.step)
    images, partners = run.loader.images(part, run.epoch, epoch_step, run.step)
    target = split.labels[part.indices]
    if partners is not None:
        assert part.partners is not None
        assert part.shares is not None
        images = mixed(images, partners, part.shares)
        target = mixed_target(target, split.labels[part.partners], part.shares, len(run.data.classes))
    batch = Batch(
        target.to(run.device, non_blocking=True), part.indices, recipe.seed, run.epoch, run.step, epoch_step,
        size=len(indices), count=part.count,
    )  # fmt: skip
    return images, batch


def evaluate(run: TrainState) -> Metrics:
    """Validation metrics of the student (of its average where it has one); with a teacher also how the two compare."""
    split, recipe = run.data.val, run.recipe
    logits = logits_of(run.evaluated, split, run.device)
    metrics = {f"val/{name}": value for name, value in student_metrics(logits, split.labels).items()}
    teacher = None
    if run.teacher_outputs is not None:
        if run.teacher_val_logits is None:
            asked = run.teacher_outputs.asked
            run.teacher_val_logits = run.teacher_outputs.val_logits()
            # a training that continues asks again; its rows must not tell where it was cut
            run.teacher_outputs.asked = asked + (
                len(distributed.share(torch.arange(len(split)))) if run.epoch == 0 else 0
            )
        teacher = run.teacher_val_logits
        metrics["val/teacher_accuracy"] = student_metrics(teacher, split.labels)["accuracy"]
        pair = pair_metrics(logits, teacher, recipe.seed, run.epoch, recipe.batch_size)
        metrics |= {f"val/{name}": value for name, value in pair.items()}
    if recipe.method.of_each_image:
        metrics |= _validation_loss(run, logits, teacher)
    return metrics


@torch.no_grad()
def _validation_loss(run: TrainState, logits: Tensor, teacher: Tensor | None) -> Metrics:
    """What the method's loss and its terms are on the whole validation split, from both networks' logits [N, K]."""
    split, recipe = run.data.val, run.recipe
    batch = Batch(
        split.labels, torch.arange(len(split)), recipe.seed, run.epoch, run.step, size=len(split), count=len(split)
    )
    terms = run.distiller.criterion(Outputs(logits), Outputs(teacher) if teacher is not None else None, batch)
    values = {"loss": weighted_sum(terms), **{name: term.value for name, term in terms.items()}}
    return {f"val/{name}": value.item() for name, value in values.items()}


def _update(learner: Learner, terms: dict[str, LossTerm], batch: Batch, name: str, step: int) -> dict[str, Tensor]:
    loss = weighted_sum(terms)
    # DDP averages over ranks: with this factor the average is the mean over the global batch
    factor = batch.count * distributed.size() / batch.size
    skipped = learner.update(loss * factor if factor != 1 else loss, step)
    values = {name: loss, **{key: term.value for key, term in terms.items()}}
    return values if skipped is None else {**values, SKIPPED: skipped}


@torch.no_grad()
def _untouched_logits(run: TrainState, images: Tensor) -> Tensor:
    """The student's logits as in training, its BatchNorm buffers left as they are: it is the critic's turn."""
    student = run.distiller.student
    buffers = {name: buffer.clone() for name, buffer in student.named_buffers()}
    logits: Tensor = torch.func.functional_call(student, buffers, (images,))
    return logits


def _seed_dropout(device: torch.device, seed: int) -> None:
    """What dropout draws from. torch.manual_seed goes over every kind of device, 1 ms and more where there is none."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def _spent(run: TrainState) -> Metrics:
    """What views and answers have cost so far: images of all ranks, asked about, answered by the network, and answered
    again to check; seconds of this rank, in views, answers, and the network itself."""
    spent: Metrics = {"views_seconds": run.loader.seconds}
    answers = run.teacher_outputs
    counts = (answers.asked, answers.computed, answers.checked) if answers is not None else (0, 0, 0)
    of_all = distributed.sum_over_ranks(torch.tensor(counts, device=run.device)).tolist()
    names = ("teacher_images", "teacher_images_computed", "teacher_images_checked")
    spent |= dict(zip(names, of_all, strict=True))
    if answers is not None:
        spent |= {"teacher_seconds": answers.seconds, "teacher_forward_seconds": answers.forward_seconds}
    return spent


def _out_of_patience(run: TrainState) -> bool:
    return run.best is not None and early_stop(int(run.best["epoch"]), run.epoch, run.recipe.early_stopping)


def _require_finite(metrics: Metrics, run: TrainState) -> None:
    broken = [f"{name} is {value}" for name, value in metrics.items() if not math.isfinite(value)]
    if broken:
        raise NonFiniteLoss(f"epoch {run.epoch + 1}, after step {run.step - 1}: {', '.join(broken)}")
