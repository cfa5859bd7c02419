"""The order of a training's images, and the weights of its classes. N images, K classes."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from kdtrain.data.base import HIDDEN
from kdtrain.errors import UserError
from kdtrain.runtime.rng import generator

Sampler = Literal["shuffled", "class_balanced"]


@dataclass(frozen=True)
class Drawing:
    """The options by which a training draws its batches from the labels of its images.

    Attributes:
        seed: The training's seed.
        batch_size: Images of a global batch.
        sampler: See `batches`.
        labelled_only: True if unlabelled images are left out, as for a student alone.
        labelled_share: The share of labelled images in each batch, or None.
    """

    seed: int
    batch_size: int
    sampler: Sampler = "shuffled"
    labelled_only: bool = False
    labelled_share: float | None = None

    def pool(self, labels: Tensor) -> Tensor:
        """Return the sorted indices of the images that are drawn, int64, of labels int64 [N]."""
        drawn = labels != HIDDEN if self.labelled_only else torch.ones_like(labels)
        return drawn.nonzero().flatten()

    def batches(self, labels: Tensor, epoch: int) -> tuple[Tensor, ...]:
        """Return the image indices of each global batch of an epoch, in an order drawn from the seed.

        An epoch draws as many images as the split has (N), labelled or not, so it has ceil(N / batch_size) batches.
        With fewer labelled images than a batch draws, an image comes several times in a batch.

        shuffled: the images of the pool are drawn in one random permutation after another, which go on over the epochs.
        So each image is drawn once in an epoch, or several times if there are unlabelled ones, which are left out.
        class_balanced: equally many images of each class that has any (to one); the images of a large class take turns
        over the epochs at random, those of a small one are repeated.
        labelled_share: that share of each batch (rounded, at least one) has labels. The labelled and the unlabelled
        images are drawn in permutations of their own.
        """
        total = len(labels)
        if self.labelled_share is not None:
            return self._shared_batches(labels, epoch, self.labelled_share)
        pool = self.pool(labels)
        if self.sampler == "class_balanced":
            drawn = pool[_class_balanced(labels[pool], total, self.seed, epoch)]
            drawn = drawn[torch.randperm(total, generator=generator(self.seed, "order", epoch))]
        else:
            drawn = _in_turns(pool, self.seed, "order", epoch * total, total)
        return tuple(drawn.split(self.batch_size))

    def turns(self, labels: Tensor, epoch: int, epoch_step: int, size: int) -> Tensor:
        """Return the permutation, from 0, to which each image of a batch of this size belongs, int64 [n].

        It draws the view of the image, so that one which is drawn again in an epoch has another view. It is the epoch
        if every image is drawn once in an epoch; and with class_balanced and labelled_share, whose images have one view
        in an epoch: so a teacher's outputs for them can be cached.
        """
        pool = len(self.pool(labels))
        if self.sampler == "class_balanced" or self.labelled_share is not None or pool == len(labels):
            return torch.full((size,), epoch)
        return (epoch * len(labels) + epoch_step * self.batch_size + torch.arange(size)) // pool

    def _shared_batches(self, labels: Tensor, epoch: int, share: float) -> tuple[Tensor, ...]:
        is_labelled = labels != HIDDEN
        sizes = [len(batch) for batch in labels.split(self.batch_size)]
        counts = [max(1, round(share * size)) for size in sizes]
        others = [size - count for size, count in zip(sizes, counts, strict=True)]
        drawn = [
            _in_turns(of.nonzero().flatten(), self.seed, purpose, epoch * sum(parts), sum(parts)).split(parts)
            for of, purpose, parts in (
                (is_labelled, "labelled order", counts),
                (~is_labelled, "unlabelled order", others),
            )
        ]
        return tuple(torch.cat(parts) for parts in zip(*drawn, strict=True))


def by_turn(turns: Tensor, images: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield each turn of a batch, int64 [n], with its images of int64 [n]; equal turns follow one another."""
    values, counts = turns.unique_consecutive(return_counts=True)
    yield from zip(values.tolist(), images.split(counts.tolist()), strict=True)


def _in_turns(images: Tensor, seed: int, purpose: str, start: int, count: int) -> Tensor:
    """Return `count` images from number `start` on of an endless sequence: one permutation of them after another."""
    first = start // len(images)
    turns = range(first, -(-(start + count) // len(images)))
    orders = (torch.randperm(len(images), generator=generator(seed, purpose, turn)) for turn in turns)
    drawn = torch.cat([images[:0], *(images[order] for order in orders)])
    return drawn[start - first * len(images) :][:count]


def _class_balanced(labels: Tensor, total: int, seed: int, epoch: int) -> Tensor:
    """Return `total` indices, class after class; no image of a class is drawn twice before all others of it are."""
    images_K = torch.bincount(labels)
    present = images_K.nonzero().flatten().tolist()
    members_K = labels.argsort(stable=True).split(images_K.tolist())
    least, more = divmod(total, len(present))
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


def label_weights(labels: Tensor, class_weights_K: Tensor | None) -> Tensor:
    """Return the weight of each image in the cross-entropy, float64 [N]: 1 or that of its class, 0 without a label."""
    weights_N = torch.ones(len(labels)) if class_weights_K is None else class_weights_K[labels.clamp(min=0)]
    return weights_N.double().where(labels != HIDDEN, 0.0)


def class_weights(chosen: str | tuple[float, ...], labels: Tensor, classes: int) -> Tensor | None:
    """Return the weights of the K classes in cross-entropy, float32 [K], or None.

    Args:
        chosen: "none", "balanced", or a weight for each class. balanced: N / (K n_k), with n_k images of class k and
            the K classes that have any, so that each class has the same sum of weights; 0 for the others. Only
            labelled images count.
        labels: Labels of the training split, int64 [N].
        classes: Number of classes of the data set.

    Raises:
        UserError: There are not as many weights as classes.
    """
    if chosen == "none":
        return None
    if chosen == "balanced":
        labels = labels[labels != HIDDEN]
        images_K = torch.bincount(labels, minlength=classes)
        weights_K = len(labels) / (images_K.count_nonzero() * images_K.double())
        return weights_K.where(images_K > 0, 0.0).float()
    if len(chosen) != classes:
        raise UserError(
            f"recipe.class_weights: must have a weight for each of the {classes} classes, in the order of the data"
            f" set's classes, got {len(chosen)}"
        )
    return torch.tensor(chosen, dtype=torch.float32)
