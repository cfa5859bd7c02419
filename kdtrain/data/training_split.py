"""The training split as the options of every data set have it: a part of it, hidden labels, random views, more images.

`registry.load` calls `prepared` after a data set's own `load`, so a data set knows nothing of these options.
N images of the training split, K classes.
"""

from collections.abc import Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path

import torch
from torch import Tensor

from kdtrain.data.base import HIDDEN, DataConfig, Dataset, Part, Split, part_problem, sampled, stratified
from kdtrain.data.joined_images import AffineImages, JoinedImages
from kdtrain.data.notes import listed
from kdtrain.data.random_affine import RandomAffine
from kdtrain.errors import UserError

MOST_CHOICES = 20
"""The most names of classes in a message."""


def prepared(config: DataConfig, root: Path, place: str = "recipe.data") -> Dataset:
    """Return the data set of a config below `root`, with every option of its training split; `place` is in errors.

    Validation and test stay as they are.

    Raises:
        UserError: Files are absent or damaged, a class is unknown or has too few images, or nothing would be left.
    """
    try:
        data = config.load(root)
    except UserError as error:
        raise UserError(*(text.replace("recipe.data", place, 1) for text in error.problems)) from None
    train, seed = data.train, config.split_seed
    if config.part is not None:
        if problem := part_problem(config.part, len(train), len(train.labels.unique())):
            raise UserError(f"{place}.part.of: {problem}")
        train = _selected(train, part_indices(train.labels, config.part, seed))
    if config.exclude_classes is not None:
        train = _without_classes(train, data, config.exclude_classes, f"{place}.exclude_classes")
    if config.labelled_per_class is not None:
        count = config.labelled_per_class
        train = _with_labels(train, _labels_per_class(train, data, config, count, f"{place}.labelled_per_class"))
    if config.labelled_fraction is not None:
        fraction = config.labelled_fraction
        train = _with_labels(train, _share_of_labels(train, fraction, seed, f"{place}.labelled_fraction"))
    if isinstance(config.augment, RandomAffine):
        train = replace(train, images=AffineImages(train.images, config.augment))
    notes = data.notes
    if config.transfer is not None:
        more = prepared(config.transfer, root, f"{place}.transfer")
        _require_no_held_out_image(more, data, f"{place}.transfer.name")
        hidden = torch.full((len(more.train),), HIDDEN)
        train = Split(JoinedImages([train.images, more.train.images]), torch.cat([train.labels, hidden]))
        notes = (*notes, *(f"{more.name}: {note}" for note in more.notes))
    return data if train is data.train else replace(data, train=train, notes=notes)


def _require_no_held_out_image(more: Dataset, data: Dataset, place: str) -> None:
    """Raise UserError if a training image of `more` is, by its content, in the validation or test split of `data`.

    They are refused and not left out: equal files are the sign of a wrong folder or split, of which copies that were
    resized or compressed again would remain.
    """
    for title, split in (("test", data.test), ("validation", data.val)):
        held_out = set(split.images.digests())
        known = [i for i, digest in enumerate(more.train.images.digests()) if digest in held_out]
        if known:
            raise UserError(
                f"{place}: must have no image of the {title} split of {data.name}, which would be trained on;"
                f" {more.name} has {len(known):,}, for example {more.train.images.name(known[0])}; name other images or"
                " remove these"
            )


def part_indices(labels: Tensor, part: Part, seed: int) -> Tensor:
    """Return the sorted indices of one part of images with these labels, int64 [N].

    The images of each class are shuffled, the classes stand one after the other, and the parts take turns. So the parts
    differ by at most one image, in all and of each class; images without a label are a class too.
    """
    shuffled = [sampled(labels, label, None, seed, "part") for label in labels.unique().tolist()]
    return torch.cat(shuffled)[part.index :: part.of].sort().values


def _selected(split: Split, indices: Tensor) -> Split:
    return Split(split.images.select(indices), split.labels[indices])


def _with_labels(split: Split, kept: Tensor) -> Split:
    """Return a split in which only the images of these indices keep their label."""
    labels = torch.full_like(split.labels, HIDDEN)
    labels[kept] = split.labels[kept]
    return replace(split, labels=labels)


def _without_classes(train: Split, data: Dataset, names: Sequence[str], place: str) -> Split:
    """Return the split without the images of these classes; images without a label stay."""
    for name in names:
        if name not in data.classes:
            near = get_close_matches(name, data.classes, n=1)
            choices = ", ".join(data.classes) if len(data.classes) <= MOST_CHOICES else listed(data.classes)
            nearest = f"; nearest: {near[0]}" if near else ""
            raise UserError(f"{place}: {data.name} has no class '{name}'; choices: {choices}{nearest}")
    excluded = torch.tensor([data.classes.index(name) for name in names])
    left = (~torch.isin(train.labels, excluded)).nonzero().flatten()
    if not (train.labels[left] != HIDDEN).any():
        raise UserError(f"{place}: must leave a training image of at least one class, got {', '.join(names)}")
    return _selected(train, left)


def _labels_per_class(train: Split, data: Dataset, config: DataConfig, count: int, place: str) -> Tensor:
    """Return the indices of `count` images of each class that is not excluded."""
    kept = []
    for label, name in enumerate(data.classes):
        if name in (config.exclude_classes or ()):
            continue
        own = sampled(train.labels, label, count, config.split_seed, "labelled")
        if len(own) < count:
            raise UserError(f"{place}: must be at most the {len(own)} training images of class {name}, got {count}")
        kept.append(own)
    return torch.cat(kept)


def _share_of_labels(train: Split, fraction: float, seed: int, place: str) -> Tensor:
    """Return the indices of a stratified share of the labelled images."""
    labelled = train.labelled
    count = round(fraction * len(labelled))
    if count == 0:
        raise UserError(f"{place}: must keep the label of at least one of {len(labelled)} images, got {fraction}")
    return labelled[stratified(train.labels[labelled], count, seed, "labelled")]
