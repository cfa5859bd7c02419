"""Pictures of a training: its learning rate by step, and its first mixed images."""

import numpy as np
import torch
from torch import Tensor

from kdtrain.config.recipe import Recipe
from kdtrain.data.base import Dataset
from kdtrain.data.mixup import mixed
from kdtrain.training.loader import BatchLoader, RankBatch
from kdtrain.training.optimizers import lr_at, warmup_steps
from kdtrain.visualization.networks import Arrays, drawable

POINTS = 2_000
"""The steps of a longer training at which the learning rate is taken: more than a picture has columns."""
MIXED_SHOWN = 25


def lr_schedule(recipe: Recipe, data: Dataset) -> Arrays:
    """Return the learning rate of a recipe at P steps, or {} if it is constant."""
    steps_per_epoch = -(-len(data.train) // recipe.batch_size)
    total = steps_per_epoch * recipe.epochs
    steps = np.unique(np.linspace(0, total - 1, min(total, POINTS)).round().astype(np.int64))
    schedule, lr = recipe.lr_schedule, recipe.optimizer.lr
    rates = np.array([lr_at(schedule, lr, step, steps_per_epoch, recipe.epochs) for step in steps.tolist()])
    if (rates == rates[0]).all():
        return {}
    return {
        "lr_steps": steps,
        "lr_rates": rates,
        "lr_epochs": np.array(recipe.epochs),
        "lr_steps_per_epoch": np.array(steps_per_epoch),
        "lr_warmup_steps": np.array(warmup_steps(schedule, steps_per_epoch, recipe.epochs)),
    }


def mixed_images(recipe: Recipe, data: Dataset) -> Arrays:
    """Return the first 25 mixed images of the first epoch as the networks receive them, or {} without mixup."""
    if recipe.mixup is None:
        return {}
    loader = BatchLoader(data.train, torch.device("cpu"), recipe.drawing, recipe.mixup)
    labels_N = data.train.labels
    shown: list[tuple[Tensor, Tensor, Tensor]] = []
    missing = MIXED_SHOWN
    for step, indices in enumerate(loader.batches(0)):
        part = _first_images(loader.part(indices, 0, step, step), missing)
        images, partners = loader.images(part, 0, step, step)
        assert partners is not None
        assert part.partners is not None
        assert part.shares is not None
        pairs_N2 = torch.stack([labels_N[part.indices], labels_N[part.partners]], dim=1)
        shown.append((mixed(images, partners, part.shares), part.shares, pairs_N2))
        missing -= len(part.indices)
        if not missing:
            break
    images, shares, labels = (torch.cat(parts) for parts in zip(*shown, strict=True))
    return {"mixed_images": drawable(images), "mixed_shares": shares.numpy(), "mixed_labels": labels.numpy()}


def _first_images(part: RankBatch, images: int) -> RankBatch:
    """Return the first images of a batch. Views are pure functions, so they are equal to those of the whole batch."""
    assert part.partners is not None
    assert part.shares is not None
    indices = part.indices[:images]
    return RankBatch(indices, len(indices), part.turns[:images], part.partners[:images], part.shares[:images])
