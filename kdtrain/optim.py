"""Optimizers and learning-rate schedules from their configs. A schedule is a function of the step, never resumed."""

import math

import torch
from torch import nn

from kdtrain.config.training import Adam, AdamW, Constant, Cosine, Sgd


def build_optimizer(config: Sgd | Adam | AdamW, module: nn.Module) -> torch.optim.Optimizer:
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if isinstance(config, Sgd):
        return torch.optim.SGD(parameters, config.lr, config.momentum, weight_decay=config.weight_decay)
    if isinstance(config, Adam):
        return torch.optim.Adam(parameters, config.lr, weight_decay=config.weight_decay)
    decayed = [parameter for parameter in parameters if parameter.ndim > 1]
    spared = [parameter for parameter in parameters if parameter.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": spared, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, config.lr)


def lr_at(schedule: Constant | Cosine, lr: float, step: int, steps_per_epoch: int, epochs: int) -> float:
    """The learning rate of update `step` (from 0).

    cosine: lr * (step + 1) / warm-up steps, then lr * (1 + cos(pi * t)) / 2 with t from 0 to 1 over the rest
    (Loshchilov and Hutter 2017, arXiv:1608.03983, eq. 5, without restarts).
    """
    if isinstance(schedule, Constant):
        return lr
    warmup = schedule.warmup_epochs * steps_per_epoch
    if step < warmup:
        return lr * (step + 1) / warmup
    progress = (step - warmup) / (epochs * steps_per_epoch - warmup)
    return lr * (1 + math.cos(math.pi * progress)) / 2
