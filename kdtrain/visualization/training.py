"""What a training is made of: its learning rate by step, and its first images where they are mixed."""

import numpy as np
import torch
from torch import Tensor

from kdtrain.config.recipe import Recipe
from kdtrain.data.base import Dataset
from kdtrain.data.mixup import mixed
from kdtrain.data.sampling import batches_of
from kdtrain.training.loader import BatchLoader, Part, part_of
from kdtrain.training.optimizers import lr_at, warmup_steps
from kdtrain.visualization.networks import Arrays, drawable

POINTS = 2_000
"""More than a picture has columns: of longer trainings the learning rate is taken at so many steps."""
MIXED_SHOWN = 25


def lr_schedule(recipe: Recipe, data: Dataset) -> Arrays:
    """`lr_...`: steps int64 and rates float64 [P], epochs, steps_per_epoch, warmup_steps; nothing where it does not
    change."""
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
    """`mixed_...` of the first 25 images of the first epoch, as the networks get them: images uint8 [N, H, W, 3],
    shares float32 [N], labels of image and partner int64 [N, 2]; nothing where images are not mixed."""
    if recipe.mixup is None:
        return {}
    feed, labels_N = BatchLoader(recipe, data.train, torch.device("cpu")), data.train.labels
    shown: list[tuple[Tensor, Tensor, Tensor]] = []
    missing = MIXED_SHOWN
    for step, indices in enumerate(batches_of(recipe.seed, recipe.batch_size, len(data.train), epoch=0)):
        part = _beginning(part_of(recipe, indices, len(data.train), 0, step), missing)
        images, partners = feed.images(part, 0, step, step)
        assert partners is not None
        assert part.partners is not None
        assert part.shares is not None
        pairs_N2 = torch.stack([labels_N[part.mine], labels_N[part.partners]], dim=1)
        shown.append((mixed(images, partners, part.shares), part.shares, pairs_N2))
        missing -= len(part.mine)
        if not missing:
            break
    images, shares, labels = (torch.cat(parts) for parts in zip(*shown, strict=True))
    return {"mixed_images": drawable(images), "mixed_shares": shares.numpy(), "mixed_labels": labels.numpy()}


def _beginning(part: Part, images: int) -> Part:
    """The first images of a part: views are pure functions, so they are what the whole part's would be."""
    assert part.partners is not None
    assert part.shares is not None
    mine = part.mine[:images]
    return Part(mine, len(mine), part.partners[:images], part.shares[:images])
