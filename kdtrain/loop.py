"""The loop, read top to bottom: fit -> epoch -> train_step, then evaluate and report."""

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kdtrain import ranks
from kdtrain.evaluate import accuracy, agreement, logits_of, nll
from kdtrain.methods import weighted_sum
from kdtrain.streams import generator, stream

if TYPE_CHECKING:
    from kdtrain.run import Run

Metrics = dict[str, float]
Report = Callable[[Metrics, "Run"], None]


class NonFiniteLoss(Exception):
    """The loss stopped being a number: the trial has failed, and says where and which term."""


def fit(run: "Run", total_epochs: int, report: Report) -> None:
    """Trains `run` on to `total_epochs`; report(metrics, run) is called once after every epoch, on every rank.

    Raises NonFiniteLoss, on all ranks alike, at the end of the epoch in which a metric became NaN or infinite.
    """
    while run.epoch < total_epochs:
        started = time.perf_counter()
        asked_before = run.teacher.images if run.teacher else 0
        metrics = train_epoch(run)
        metrics |= evaluate(run)
        _require_finite(metrics, run)
        run.epoch += 1
        run.remember_best(metrics)
        metrics["images"] = len(run.data.train)
        asked = (run.teacher.images if run.teacher else 0) - asked_before
        metrics["teacher_images"] = int(ranks.sum_over_ranks(torch.tensor(asked, device=run.device)))
        metrics["seconds"] = time.perf_counter() - started
        report({"epoch": run.epoch, "step": run.step, **metrics}, run)


def train_epoch(run: "Run") -> Metrics:
    """One pass over the training images in this epoch's order; the terms' means over all images and ranks."""
    run.distiller.train()
    batch_size, seed = run.recipe.batch_size, run.recipe.seed
    order = torch.randperm(len(run.data.train), generator=generator(seed, "order", run.epoch))
    lr = run.learner.lr(run.step)
    sums: dict[str, Tensor] = {}
    for batch in order.split(batch_size):
        for name, value in train_step(run, batch).items():
            sums[name] = sums[name] + value if name in sums else value
        run.step += 1
    # one transfer at the end of the epoch: the step never waits for the device
    totals = ranks.sum_over_ranks(torch.stack(list(sums.values()))).tolist()
    means = {f"train/{name}": total / len(order) for name, total in zip(sums, totals, strict=True)}
    _require_finite(means, run)
    return {"lr": lr, **means}


def train_step(run: "Run", batch: Tensor) -> dict[str, Tensor]:
    """One update from one global batch of image indices; each term summed over this rank's images."""
    own = ranks.share(batch)
    idle = len(own) == 0
    if idle:  # a short last batch: this rank joins the reduction with weight 0
        own = batch[:1]
    images = run.data.train.images.train_view(own, run.recipe.seed, run.epoch).to(run.device, non_blocking=True)
    target = run.data.train.labels[own].to(run.device, non_blocking=True)
    teacher = run.teacher(images) if run.teacher else None
    torch.manual_seed(stream(run.recipe.seed, "dropout", run.step, ranks.rank()))
    with torch.autocast(run.device.type, torch.bfloat16, enabled=run.recipe.precision == "bf16"):
        terms = run.wrapped(images, teacher, target)
    loss = weighted_sum(terms)
    count = 0 if idle else len(own)
    # DDP averages over ranks: with this factor the average is the mean over the global batch
    run.learner.update(loss * (count * ranks.size() / len(batch)), run.step)
    values = {"loss": loss, **{name: term.value for name, term in terms.items()}}
    return {name: value.detach().double() * count for name, value in values.items()}


def evaluate(run: "Run") -> Metrics:
    """Validation metrics; with a teacher also its accuracy and how often the two agree."""
    split = run.data.val
    logits = logits_of(run.distiller.student, split, run.device)
    metrics = {"val/accuracy": accuracy(logits, split.labels), "val/nll": nll(logits, split.labels)}
    if run.teacher:
        if run.teacher_val_logits is None:
            run.teacher_val_logits = logits_of(run.teacher.network, split, run.device)
            if run.epoch == 0:  # a training that continues asks again; its rows must not tell where it was cut
                run.teacher.images += len(ranks.share(torch.arange(len(split))))
        metrics["val/teacher_accuracy"] = accuracy(run.teacher_val_logits, split.labels)
        metrics["val/agreement"] = agreement(logits, run.teacher_val_logits)
    return metrics


def _require_finite(metrics: Metrics, run: "Run") -> None:
    broken = [f"{name} is {value}" for name, value in metrics.items() if not math.isfinite(value)]
    if broken:
        raise NonFiniteLoss(f"epoch {run.epoch + 1} (ending at step {run.step}): {', '.join(broken)}")
