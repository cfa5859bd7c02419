"""Ranks, each with loader processes of its own, together get the global batch that one process gets."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from groups import Group
from made_up_data import cub200
from trainings import CPU, recipe

from kdtrain.training.loader import BatchLoader

pytestmark = pytest.mark.ddp

BIRDS = {"name": "cub200", "resolution": 20}


def seen(folder: Path, loaders: int) -> list[tuple[int, torch.Tensor, torch.Tensor]]:
    config = recipe(
        data=BIRDS, student={"model": "lenet5_student"}, batch_size=19, epochs=2, mixup={}, sampler="class_balanced"
    )
    data = config.data.load(folder)
    loader = BatchLoader(data.train, CPU, config.drawing, config.mixup, loaders)
    step, found = 0, []
    for epoch in range(config.epochs):
        for epoch_step, indices in enumerate(loader.batches(epoch)):
            part = loader.part(indices, epoch, epoch_step, step)
            images, partners = loader.images(part, epoch, epoch_step, step)
            found.append((part.count, images, partners))
            step += 1
    loader.close()
    return found


@cache
def results() -> list[Any]:
    with TemporaryDirectory() as folder:
        cub200(Path(folder), (10, 12, 7))  # 20 training images: the last batch has one, so other ranks have no image
        return [seen(Path(folder), loaders) for loaders in (0, 1)]


def test_the_ranks_parts_are_the_global_batch_with_and_without_loaders(group: Group) -> None:
    alone, _ = results()
    for loaders in (0, 1):
        for step, (count, images, partners) in enumerate(alone):
            parts = [of_rank[loaders][step] for of_rank in group.of(__name__)]
            assert sum(part[0] for part in parts) == count
            for rank, (own, own_images, own_partners) in enumerate(parts):
                assert torch.equal(own_images[:own], images[rank :: group.ranks])
                assert torch.equal(own_partners[:own], partners[rank :: group.ranks])
    assert [len(images) for _, images, _ in alone][-1] == 1
