"""Optimizers and learning-rate schedules from their configs. A schedule is a function of the step, without state."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from kdtrain.config.training import (
    Adam,
    AdamW,
    Constant,
    Cosine,
    CosineInSteps,
    EarlyStopping,
    Exponential,
    Linear,
    LrSchedule,
    Optimizer,
    Sgd,
    Step,
)
from kdtrain.errors import UserError

PUBLISHED_HALF_PERIOD_EPOCHS = 10
"""T_max of CosineAnnealingLR in the reference implementation of the CUB-200 setup, whatever the epochs."""

CORRECTED_STEPS_PER_WARMUP_STEP = 10
"""A warm-up counted in steps takes at most one tenth of a training."""


def build_optimizer(config: Optimizer, module: nn.Module) -> torch.optim.Optimizer:
    """Return the fused optimizer of the parameters that are not frozen; UserError if all are."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not parameters:
        raise UserError("recipe: every parameter is frozen, so there is nothing to train")
    if isinstance(config, Sgd):
        sgd = torch.optim.SGD(parameters, config.lr, config.momentum, weight_decay=config.weight_decay, fused=True)
        for parameter in parameters if config.momentum else ():
            # if a gradient scaler skips the first step, torch's fused SGD leaves this buffer uninitialised
            sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return sgd
    if isinstance(config, Adam):
        return torch.optim.Adam(parameters, config.lr, weight_decay=config.weight_decay, fused=True)
    return _adamw(config, parameters)


def lr_at(schedule: LrSchedule, lr: float, step: int, steps_per_epoch: int, epochs: int) -> float:
    """Return the learning rate of update `step`, counted from 0; `lr` is the peak."""
    epoch = step // steps_per_epoch
    if isinstance(schedule, Constant):
        return lr
    if isinstance(schedule, Step):
        return lr * schedule.factor ** (epoch // schedule.every_epochs)
    if isinstance(schedule, Exponential):
        return lr * schedule.factor**epoch
    if isinstance(schedule, Linear):
        return lr * (1 - step / (epochs * steps_per_epoch))
    if isinstance(schedule, CosineInSteps):
        total = schedule.total_steps or epochs * steps_per_epoch
        return _cosine_in_steps(lr, step, warmup_steps(schedule, steps_per_epoch, epochs), total)
    if schedule.convention == "published":
        return _swinging_cosine(schedule, lr, epoch)
    warmup = warmup_steps(schedule, steps_per_epoch, epochs)
    return _cosine(schedule, lr, step, warmup, epochs * steps_per_epoch)


def warmup_steps(schedule: LrSchedule, steps_per_epoch: int, epochs: int) -> int:
    """Return the number of warm-up steps; 0 without warm-up."""
    if isinstance(schedule, Cosine):
        return schedule.warmup_epochs * steps_per_epoch
    if not isinstance(schedule, CosineInSteps):
        return 0
    if schedule.convention == "published":
        return schedule.warmup_steps
    return min(schedule.warmup_steps, epochs * steps_per_epoch // CORRECTED_STEPS_PER_WARMUP_STEP)


def early_stop(best_epoch: int, epoch: int, stopping: EarlyStopping | None) -> bool:
    """Return True if a training ends after `epoch` because the objective was best after `best_epoch`."""
    return stopping is not None and epoch - best_epoch >= stopping.patience_epochs


def _adamw(config: AdamW, parameters: list[nn.Parameter]) -> torch.optim.AdamW:
    """Return AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101); `decay_times` names the decay's factor."""
    decayed = [parameter for parameter in parameters if parameter.ndim > 1 or config.decay_on == "all"]
    spared = [parameter for parameter in parameters if parameter.ndim <= 1 and config.decay_on == "weights"]
    if config.decay_times == "nothing":
        groups = [{"params": decayed, DECAY: config.weight_decay}, {"params": spared, DECAY: 0.0}]
        return AdamWithDecayPerStep(
            [group for group in groups if group["params"]], config.lr, weight_decay=0.0,
            fused=parameters[0].device.type != "cpu",  # on a CPU it rounds as torch's default
        )  # fmt: skip
    # torch multiplies the decay by lr_t; dividing by the peak first gives weight_decay * lr_t / lr
    decay = config.weight_decay / config.lr if config.decay_times == "relative_lr" else config.weight_decay
    groups = [{"params": decayed, "weight_decay": decay}, {"params": spared, "weight_decay": 0.0}]
    return torch.optim.AdamW([group for group in groups if group["params"]], config.lr, fused=True)


DECAY = "decay_per_step"


class AdamWithDecayPerStep(torch.optim.AdamW):
    """AdamW whose decay does not depend on the learning rate: w -= decay_per_step * w, then Adam's step.

    This is the AdamW of the reference implementation of the Flowers102 setup. Parameters without a gradient do not
    change.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        assert closure is None
        # A gradient scaler calls `step` of a fused optimizer even if an overflow is to skip it, and sets this attribute
        # before; without it the scaler would wait for the device.
        overflow: Tensor | None = getattr(self, "found_inf", None)
        for group in self.param_groups:
            moving: list[Tensor] = [each for each in group["params"] if each.grad is not None]
            if moving and group[DECAY]:
                kept = 1 - group[DECAY]
                torch._foreach_mul_(moving, kept if overflow is None else torch.where(overflow > 0, 1.0, kept))
        return super().step()


def _cosine(schedule: Cosine, lr: float, step: int, warmup: int, total: int) -> float:
    """Return a linear warm-up from lowest_lr to lr, then a cosine back to lowest_lr.

    With height = lr - lowest_lr: lowest_lr + height * (step + 1) / warmup in the warm-up, then
    lowest_lr + height * (1 + cos(pi * t)) / 2 with t from 0 to 1 (Loshchilov and Hutter 2017, arXiv:1608.03983, eq. 5,
    without restarts).
    """
    lowest, height = schedule.lowest_lr, lr - schedule.lowest_lr
    if step < warmup:
        return lowest + height * (step + 1) / warmup
    progress = (step - warmup) / (total - warmup)
    return lowest + height * (1 + math.cos(math.pi * progress)) / 2


def _swinging_cosine(schedule: Cosine, lr: float, epoch: int) -> float:
    """Return the schedule of the CUB-200 setup's reference implementation, which changes once per epoch.

    A linear warm-up over `warmup_epochs`, then a cosine with a period of 20 epochs: CosineAnnealingLR(T_max=10) swings
    back when it is stepped beyond T_max.
    """
    lowest, height = schedule.lowest_lr, lr - schedule.lowest_lr
    if epoch < schedule.warmup_epochs:
        return lowest + height * epoch / schedule.warmup_epochs
    swing = (epoch - schedule.warmup_epochs) / PUBLISHED_HALF_PERIOD_EPOCHS
    return lowest + height * (1 + math.cos(math.pi * swing)) / 2


def _cosine_in_steps(lr: float, step: int, warmup: int, total: int) -> float:
    """Return lr * step / warmup, then lr * (1 + cos(pi * t)) / 2 with t from 0 to 1 at the last step; 0 after it."""
    if step < warmup:
        return lr * step / warmup
    if step >= total:
        return 0.0
    return lr * (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) / 2
