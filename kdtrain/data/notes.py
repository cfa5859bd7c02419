"""What the owner of a data set should know about it before a study: nothing here is an error."""

from collections.abc import Iterator, Sequence
from itertools import combinations

import torch

from kdtrain.data.base import Dataset, Split

NAMED = 3
"""The most names in a note."""


def data_notes(dataset: Dataset, *, contents: bool = True) -> list[str]:
    """Return sentences about files that are left out, classes without images, and images in two splits.

    `contents=False` does not compare the images of the splits, for which each file is read once on this machine.
    """
    notes = [*dataset.notes, *_similar_classes(dataset), *_absent_classes(dataset)]
    return [f"{dataset.name}: {note}" for note in (*notes, *(_repeated_images(dataset) if contents else ()))]


def listed(names: Sequence[str]) -> str:
    """Return the first names, and the number of the others: `a, b, c and 5 more`."""
    more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _similar_classes(dataset: Dataset) -> Iterator[str]:
    same: dict[str, list[str]] = {}
    for name in dataset.classes:
        same.setdefault(name.casefold(), []).append(name)
    for names in same.values():
        if len(names) > 1:
            yield f"the names of the classes {' and '.join(names)} differ only in upper and lower case"


def _absent_classes(dataset: Dataset) -> Iterator[str]:
    total = len(dataset.classes)
    for title, split in _titled(dataset):
        labelled = split.labelled
        image = "image" if len(labelled) == len(split) else "labelled image"
        counts = torch.bincount(split.labels[labelled], minlength=total).tolist()
        absent = [name for name, count in zip(dataset.classes, counts, strict=True) if count == 0]
        if absent:
            yield f"the {title} split has no {image} of {len(absent):,} of {total:,} classes: {listed(absent)}"


def _repeated_images(dataset: Dataset) -> Iterator[str]:
    splits = [(title, split, split.images.digests()) for title, split in _titled(dataset)]
    for (title, split, digests), (other_title, other, other_digests) in combinations(splits, 2):
        place = {digest: index for index, digest in reversed([*enumerate(digests)])}
        repeated = [index for index, digest in enumerate(other_digests) if digest in place]
        if repeated:
            first = repeated[0]
            yield (
                f"{len(repeated):,} of {len(other):,} images of the {other_title} split are also in the {title} split,"
                f" for example {other.images.name(first)} ({split.images.name(place[other_digests[first]])})"
            )


def _titled(dataset: Dataset) -> list[tuple[str, Split]]:
    return [("train", dataset.train), ("validation", dataset.val), ("test", dataset.test)]
