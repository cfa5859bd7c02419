"""What the teacher cache gives without Ray: a list of recipes trained in one process, with the cache and without.

`python benchmarks/cached_fit.py --setup cub [--device cuda] [--px 224] [--recipes 4] [--images 2000] [--rounds 3]`:
interleaved rounds, each with an empty store and cache. Images are made up (JPEG files, or MNIST's own idx files), the
teacher has random weights. Images/s are those of training; utilisation is nvidia-smi's, sampled twice a second.
"""

import argparse
import statistics
import struct
import subprocess
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from sweep_parts import EPOCHS, network

from kdtrain.config.recipe import Recipe
from kdtrain.runtime.process import prepare_process
from kdtrain.storage.cache import Cache
from kdtrain.teacher.cache_policy import CachePolicy
from kdtrain.training.trainer import train
from kdtrain.trials.store import Store

CUB_CLASSES = 20
MNIST_HELD_OUT = 5_000
PAIRS = {"cub": ("resnet50", "mobilenetv2", CUB_CLASSES, 64), "mnist": ("lenet5_teacher", "lenet5_student", 10, 128)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setup", choices=list(PAIRS), default="cub")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--px", type=int, help="default: 224, of mnist 32")
    parser.add_argument("--recipes", type=int, default=4)
    parser.add_argument("--images", type=int, default=2000, help="of training (of cub: 28 %% of them held out)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", default="fp32")
    chosen = parser.parse_args()
    device = torch.device(chosen.device)
    prepare_process(threads=1)
    spent: dict[str, list[tuple[float, int, int, float]]] = {"live": [], "cached": []}
    with tempfile.TemporaryDirectory(prefix="cached-fit-") as folder:
        root = Path(folder)
        write_images(chosen.setup, root, chosen.images)
        torch.save(network(PAIRS[chosen.setup][0], PAIRS[chosen.setup][2]).state_dict(), root / "teacher.pth")
        for number in range(-1, chosen.rounds):  # the first is not counted: kernels are chosen, files are read
            for name in spent if number % 2 else reversed(spent):
                place = root / f"{name}-{number}"
                spent[name].append(trained(chosen, root, place, device, cached=name == "cached"))
    columns = "teacher", "seconds, median (range)", "training images/s", "teacher images computed", "utilisation"
    print(f"| {' | '.join(columns)} |\n|---|--:|--:|--:|--:|")
    for name, rows in spent.items():
        seconds, images, computed, busy = zip(*rows[1:], strict=True)
        middle = statistics.median(seconds)
        span = f"{middle:.2f} ({min(seconds):.2f} to {max(seconds):.2f})"
        print(f"| {name} | {span} | {images[0] / middle:,.0f} | {computed[0]:,} | {statistics.median(busy):.0f} % |")
    ratios = [live[0] / cached[0] for live, cached in zip(spent["live"][1:], spent["cached"][1:], strict=True)]
    print(f"\nlive / cached, seconds: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


def trained(
    chosen: argparse.Namespace, root: Path, place: Path, device: torch.device, cached: bool
) -> tuple[float, int, int, float]:
    """(seconds, training images, teacher images computed, utilisation of the GPU in %) of all recipes."""
    sharing = CachePolicy(Cache(place / "cache", 20 << 30)) if cached else None
    images = computed = 0
    with Utilisation(device) as utilisation:
        started = time.perf_counter()
        for number in range(chosen.recipes):
            outcome = train(recipe(chosen, root, number), Store(place), root, device, sharing=sharing)
            assert outcome["state"] == "complete", outcome
            images, computed = images + outcome["images"], computed + outcome["teacher_images_computed"]
        seconds = time.perf_counter() - started
    return seconds, images, computed, utilisation.percent()


def recipe(chosen: argparse.Namespace, root: Path, number: int) -> Recipe:
    teacher, student, _, batch_size = PAIRS[chosen.setup]
    data: dict[str, Any] = {"name": "mnist", "resolution": chosen.px or 32}
    if chosen.setup == "cub":
        resolution = chosen.px or 224
        data = {
            "name": "image_folder",
            "folder": "images",
            "resolution": resolution,
            "augment": "crop_flip",
            "test_fraction": 0.1,
        }
    return Recipe.model_validate(
        {
            "data": data,
            "teacher": {"model": teacher, "file": str(root / "teacher.pth")},
            "student": {"model": student, "weights": None},
            "method": {"name": "kd", "balance": {"alpha": (number + 1) / (chosen.recipes + 1)}, "temperature": 4},
            "optimizer": {"name": "sgd", "lr": 0.01, "momentum": 0.9}, "lr_schedule": {"name": "constant"},
            "batch_size": batch_size, "epochs": EPOCHS, "precision": chosen.precision,
        }
    )  # fmt: skip


def write_images(setup: str, root: Path, images: int) -> None:
    draw = torch.Generator().manual_seed(0)
    if setup == "mnist":
        folder = root / "MNIST" / "raw"
        folder.mkdir(parents=True)
        for part, count in (("train", MNIST_HELD_OUT + images), ("t10k", 1000)):
            pixels = torch.randint(0, 256, (count, 28, 28), dtype=torch.uint8, generator=draw)
            labels = (torch.arange(count) % 10).to(torch.uint8)
            written = {
                "images-idx3": struct.pack(">4i", 2051, count, 28, 28) + pixels.numpy().tobytes(),
                "labels-idx1": struct.pack(">2i", 2049, count) + labels.numpy().tobytes(),
            }
            for kind, content in written.items():
                (folder / f"{part}-{kind}-ubyte").write_bytes(content)
        return
    for number in range(images):
        file = root / "images" / f"class_{number % CUB_CLASSES:02d}" / f"{number}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        coarse = torch.randint(0, 256, (24, 32, 3), dtype=torch.uint8, generator=draw)
        Image.fromarray(coarse.numpy()).resize((500, 375)).save(file, quality=90)


class Utilisation:
    """Of the GPU, while it lasts; NaN on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self.samples: list[float] = []
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._sample) if device.type == "cuda" else None

    def __enter__(self) -> "Utilisation":
        if self.thread:
            self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        if self.thread:
            self.thread.join()

    def _sample(self) -> None:
        asked = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
        while not self.over.wait(0.5):
            with suppress(ValueError, IndexError):
                self.samples.append(float(subprocess.run(asked, capture_output=True, text=True).stdout.splitlines()[0]))

    def percent(self) -> float:
        return statistics.mean(self.samples) if self.samples else float("nan")


if __name__ == "__main__":
    main()
