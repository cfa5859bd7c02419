"""What a training's pixels cost: ms of CPU per image, and images/s of a loop over the feed alone, ready for a network.

    python benchmarks/feed.py --data DIR [--sets cifar10 cub200 ...] [--images 256] [--rounds 5]

"before" makes one PIL image after the other and turns it into floats in this process, as version 0.2 did; "now" is what
`BatchLoader` does without loaders. The variants are interleaved in every round; printed are medians over the rounds,
and of ratios the median of the rounds' own. By loaders: of a loop after its first batch, images/s by the
wall's clock, and CPU time of the training's own process, which does not see how busy the machine is.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from kdtrain.config.recipe import Recipe
from kdtrain.data.base import Dataset, as_floats
from kdtrain.data.batch_transforms import RandomResizedCropFlip
from kdtrain.data.registry import data_folder
from kdtrain.data.sampling import batches_of
from kdtrain.data.views import BatchedImages, ViewedImages
from kdtrain.runtime.process import prepare_process
from kdtrain.training.loader import BatchLoader, part_of

SETS: dict[str, dict[str, Any]] = {
    "cifar10": {"name": "cifar10", "limit_per_class": 100},
    "hymenoptera": {"name": "hymenoptera"},
    "cub200 64 px": {"name": "cub200", "resolution": 64, "limit_per_class": 5},
    "cub200 224 px": {"name": "cub200", "limit_per_class": 5},
    "flowers102": {"name": "flowers102", "limit_per_class": 5},
    "flowers102 inception": {"name": "flowers102", "crop": "inception", "limit_per_class": 3},
}
BATCH = 64
LOADERS = (0, 1, 2)


def recipe_of(data: dict[str, Any]) -> Recipe:
    return Recipe.model_validate(
        {
            "data": data, "student": {"model": "resnet18", "weights": None}, "method": {"name": "none"},
            "optimizer": {"name": "sgd", "lr": 0.1}, "lr_schedule": {"name": "constant"}, "batch_size": BATCH,
            "epochs": 1000,
        }
    )  # fmt: skip


def cpu_ms_per_image(work: Callable[[int], Any], epoch: int, images: int) -> float:
    started = time.process_time()
    work(epoch)
    return (time.process_time() - started) / images * 1e3


def loop(recipe: Recipe, data: Dataset, loaders: int, images: int) -> tuple[float, float]:
    """Over the feed alone, on the CPU: (images/s, CPU ms per image of this process)."""
    feed = BatchLoader(data.train, torch.device("cpu"), seed=recipe.seed, batch_size=BATCH, mixup=None, loaders=loaders)
    total, step, seen, started, cpu_started = len(data.train), 0, 0, 0.0, 0.0
    epoch = 0
    while seen < images:
        for epoch_step, indices in enumerate(batches_of(recipe.seed, recipe.batch_size, total, epoch)):
            part = part_of(indices, total, mixup=None, seed=recipe.seed, epoch=epoch, step=step)
            feed.images(part, epoch, epoch_step, step)
            if step == 0:  # processes start and memory is filled before the first batch
                started, cpu_started = time.perf_counter(), time.process_time()
            else:
                seen += len(indices)
            step += 1
            if seen >= images:
                break
        epoch += 1
    seconds, cpu_s = time.perf_counter() - started, time.process_time() - cpu_started
    feed.close()
    return seen / seconds, cpu_s / seen * 1e3


def measure(name: str, root: Path, images: int, rounds: int) -> None:
    recipe = recipe_of(SETS[name])
    data = recipe.data.load(root)
    views = data.train.images
    assert isinstance(views, ViewedImages)
    views.check()
    now = views.for_device(torch.device("cpu"))
    batches = torch.randperm(len(views), generator=torch.Generator().manual_seed(0))[:images].split(BATCH)
    count = sum(len(batch) for batch in batches)
    variants: dict[str, Callable[[int], Any]] = {
        "before": lambda epoch: [views.train_view(batch, 0, epoch).float().div_(255) for batch in batches],
        "now": lambda epoch: [as_floats(now.train_view(batch, 0, epoch)) for batch in batches],
    }
    if isinstance(views.views.train.batch_transform, RandomResizedCropFlip):  # what a GPU would do, on this CPU
        RandomResizedCropFlip.fast_on_cpu = True
        held = BatchedImages(views, torch.device("cpu"))
        RandomResizedCropFlip.fast_on_cpu = False
        variants["in batches"] = lambda epoch: [as_floats(held.train_view(batch, 0, epoch)) for batch in batches]
    ms: dict[str, list[float]] = {variant: [] for variant in variants}
    for work in variants.values():
        work(0)
    for epoch in range(rounds):
        for variant, work in variants.items():
            ms[variant].append(cpu_ms_per_image(work, epoch, count))
    told = [f"{variant} {statistics.median(values):.3f}" for variant, values in ms.items()]
    ratio = statistics.median(before / after for before, after in zip(ms["before"], ms["now"], strict=True))
    loops: dict[int, list[tuple[float, float]]] = {loaders: [] for loaders in LOADERS}
    for _ in range(max(1, rounds // 2)):
        for loaders in LOADERS:
            loops[loaders].append(loop(recipe, data, loaders, 3 * images))
    by_loaders = [
        f"{loaders}: {statistics.median(speed for speed, _ in found):.0f} images/s, "
        f"{statistics.median(own for _, own in found):.3f} ms here"
        for loaders, found in loops.items()
    ]
    print(
        f"{name}: CPU ms/image {', '.join(told)}; before/now {ratio:.2f}; by loaders {'; '.join(by_loaders)}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", metavar="DIR")
    parser.add_argument("--sets", nargs="*", default=list(SETS), choices=list(SETS))
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args()
    prepare_process(1)
    for name in chosen.sets:
        measure(name, data_folder(chosen.data), chosen.images, chosen.rounds)


if __name__ == "__main__":
    main()
