"""The order of a training's images, and the weights of its classes. N images, K classes."""

from typing import Literal

import torch
from torch import Tensor

from kdtrain.errors import UserError
from kdtrain.runtime.rng import generator

Sampler = Literal["shuffled", "class_balanced"]


def batches_of(seed: int, batch_size: int, labels: Tensor, epoch: int, sampler: Sampler) -> tuple[Tensor, ...]:
    """Return the image indices of each global batch of an epoch, in an order drawn from the seed.

    shuffled: each image once. class_balanced: N images too, but equally many of each class that has any (to one); the
    images of a large class take turns over the epochs at random, those of a small one are repeated.
    """
    order = torch.randperm(len(labels), generator=generator(seed, "order", epoch))
    if sampler == "class_balanced":
        order = _class_balanced(labels, seed, epoch)[order]
    return tuple(torch.split(order, batch_size))


def _class_balanced(labels: Tensor, seed: int, epoch: int) -> Tensor:
    """Return N image indices, class after class; no image of a class is drawn twice before all others of it are."""
    images_K = torch.bincount(labels)
    present = images_K.nonzero().flatten().tolist()
    members_K = labels.argsort(stable=True).split(images_K.tolist())
    least, more = divmod(len(labels), len(present))
    chosen = torch.randperm(len(present), generator=generator(seed, "class balance", epoch))[:more].tolist()
    count_of = dict.fromkeys(present, least) | {present[position]: least + 1 for position in chosen}
    drawn = []
    for label, count in count_of.items():
        members = members_K[label]
        turns = [
            members[torch.randperm(len(members), generator=generator(seed, "class order", epoch, label, turn))]
            for turn in range(-(-count // len(members)))
        ]
        drawn.append(torch.cat([members[:0], *turns])[:count])
    return torch.cat(drawn)


def class_weights(chosen: str | tuple[float, ...], labels: Tensor, classes: int) -> Tensor | None:
    """Return the weights of the K classes in cross-entropy, float32 [K], or None.

    Args:
        chosen: "none", "balanced", or a weight for each class. balanced: N / (K n_k), with n_k images of class k and
            the K classes that have any, so that each class has the same sum of weights; 0 for the others.
        labels: Labels of the training split, int64 [N].
        classes: Number of classes of the data set.

    Raises:
        UserError: There are not as many weights as classes.
    """
    if chosen == "none":
        return None
    if chosen == "balanced":
        images_K = torch.bincount(labels, minlength=classes)
        weights_K = len(labels) / (images_K.count_nonzero() * images_K.double())
        return weights_K.where(images_K > 0, 0.0).float()
    if len(chosen) != classes:
        raise UserError(
            f"recipe.class_weights: must have a weight for each of the {classes} classes, in the order of the data"
            f" set's classes, got {len(chosen)}"
        )
    return torch.tensor(chosen, dtype=torch.float32)
