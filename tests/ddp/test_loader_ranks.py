"""Two ranks, each with loader processes of its own, together get the global batch that one process gets."""

from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from made_up_data import cub200
from trainings import CPU, recipe

from kdtrain.config.recipe import Recipe
from kdtrain.data.base import Dataset
from kdtrain.data.sampling import batches_of
from kdtrain.runtime.process import prepare_process
from kdtrain.training.loader import BatchLoader, part_of

pytestmark = pytest.mark.ddp

WORLD = 2


def birds(folder: str) -> tuple[Recipe, Dataset]:
    data = {"name": "cub200", "resolution": 20}
    config = recipe(data=data, student={"model": "lenet5_student"}, batch_size=19, epochs=2, mixup={})
    return config, config.data.load(Path(folder))


def seen(folder: str, loaders: int) -> list[tuple[int, torch.Tensor, torch.Tensor]]:
    config, data = birds(folder)
    loader = BatchLoader(
        data.train, CPU, seed=config.seed, batch_size=config.batch_size, mixup=config.mixup, loaders=loaders
    )
    total, step, found = len(data.train), 0, []
    for epoch in range(config.epochs):
        for epoch_step, indices in enumerate(batches_of(config.seed, config.batch_size, total, epoch)):
            part = part_of(indices, total, mixup=config.mixup, seed=config.seed, epoch=epoch, step=step)
            images, partners = loader.images(part, epoch, epoch_step, step)
            assert partners is not None
            found.append((part.count, images, partners))
            step += 1
    loader.close()
    return found


def work(rank: int, folder: str) -> None:
    prepare_process(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/group", rank=rank, world_size=WORLD, timeout=timedelta(seconds=120)
    )
    torch.save([seen(folder, loaders) for loaders in (0, 1)], Path(folder) / f"rank-{rank}.pt")
    dist.destroy_process_group()


def test_the_ranks_parts_are_the_global_batch_with_and_without_loaders(tmp_path: Path) -> None:
    cub200(tmp_path, (10, 12, 7))  # 20 training images: the last batch has one, so one rank has no image of it
    torch.multiprocessing.spawn(work, (str(tmp_path),), nprocs=WORLD)
    alone = seen(str(tmp_path), 0)
    by_rank = [torch.load(tmp_path / f"rank-{rank}.pt") for rank in range(WORLD)]
    for loaders in (0, 1):
        for step, (count, images, partners) in enumerate(alone):
            parts = [of_rank[loaders][step] for of_rank in by_rank]
            assert sum(part[0] for part in parts) == count
            for rank, (own, own_images, own_partners) in enumerate(parts):
                assert torch.equal(own_images[:own], images[rank::WORLD])
                assert torch.equal(own_partners[:own], partners[rank::WORLD])
    assert [len(images) for _, images, _ in alone][-1] == 1
