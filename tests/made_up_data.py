"""Data sets of noise in the official layouts, for tests without the real files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import TypeAdapter
from torch import Tensor, nn

from kdtrain.data.base import Dataset
from kdtrain.data.registry import AnyData, Data
from kdtrain.data.training_split import prepared
from kdtrain.errors import UserError


def paint(file: Path, size: tuple[int, int] = (30, 24)) -> Path:
    """Write an image of noise, [H, W] = size, that depends on the names of file and folder; return the file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    entropy = list(f"{file.parent.name}/{file.name}".encode())
    noise = np.random.default_rng(entropy).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file)
    return file


def hymenoptera(root: Path, train: int = 10, val: int = 5) -> Path:
    """Write hymenoptera_data with this many ants in each part, and one more bee; return its folder."""
    folder = root / "hymenoptera_data"
    for part, count in (("train", train), ("val", val)):
        for more, name in enumerate(("ants", "bees")):
            for number in range(count + more):
                paint(folder / part / name / f"{part}_{number:03d}.png")
    return folder


def paint_classes(folder: Path, images: int = 12) -> Path:
    """Write train and test parts of two classes with this many images each; return the folder."""
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            for number in range(images):
                paint(folder / part / name / f"{part}_{name}_{number:03d}.png")
    return folder


def cub200(root: Path, counts: Sequence[int] = (10, 12, 7)) -> Path:
    """Write CUB_200_2011 with this many images of each class; return its folder."""
    folder = root / "CUB_200_2011"
    images, labels, classes = [], [], []
    for label, count in enumerate(counts, 1):
        name = f"{label:03d}.Bird_{label}"
        classes.append(f"{label} {name}\n")
        for number in range(count):
            file = paint(folder / "images" / name / f"bird_{number:04d}.png")
            images.append(f"{len(images) + 1} {name}/{file.name}\n")
            labels.append(f"{len(labels) + 1} {label}\n")
    for list_name, lines in (("images", images), ("image_class_labels", labels), ("classes", classes)):
        (folder / f"{list_name}.txt").write_text("".join(lines))
    return folder


def mnist(root: Path, train: int = 5100, test: int = 40, folder: str = "MNIST") -> Path:
    """Write MNIST/raw, or that of another set of its format, with this many images, the classes in turn; return it."""
    raw = root / folder / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    for part, count in (("train", train), ("t10k", test)):
        pixels = np.random.default_rng(count).integers(0, 256, (count, 28, 28), dtype=np.uint8)
        idx(raw / f"{part}-images-idx3-ubyte", pixels)
        idx(raw / f"{part}-labels-idx1-ubyte", (np.arange(count) % 10).astype(np.uint8))
    return raw


def idx(file: Path, values: np.ndarray) -> None:
    """Write uint8 values of any shape in MNIST's format: type, number of sizes, the sizes, the values."""
    header = bytes([0, 0, 8, values.ndim]) + b"".join(size.to_bytes(4, "big") for size in values.shape)
    file.write_bytes(header + values.tobytes())


def cifar10(root: Path, patch: pytest.MonkeyPatch, batch: int = 1010) -> Path:
    """Write cifar-10-batches-py with five batches and test images, the classes in turn; return its folder.

    torchvision no longer checks the sums of the files, which are those of the real ones.
    """
    import pickle

    from torchvision.datasets import CIFAR10

    folder = root / CIFAR10.base_folder
    folder.mkdir(parents=True)
    lists = {
        "train_list": [[f"data_batch_{number}", None] for number in range(1, 6)],
        "test_list": [["test_batch", None]],
    }
    for attribute, files in lists.items():
        patch.setattr(CIFAR10, attribute, files)
        for name, _ in files:
            pixels = np.random.default_rng(list(name.encode())).integers(0, 256, (batch, 3072), dtype=np.uint8)
            (folder / name).write_bytes(pickle.dumps({"data": pixels, "labels": [i % 10 for i in range(batch)]}))
    patch.setattr(CIFAR10, "meta", {"filename": "batches.meta", "key": "label_names", "md5": None})
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"class {i}" for i in range(10)]}))
    return folder


def flowers102(root: Path, classes: int = 3, train: int = 4, val: int = 4, test: int = 6) -> Path:
    """Write flowers-102 with this many images of each class in the official splits; return its folder."""
    from scipy.io import savemat

    folder = root / "flowers-102"
    per_class = train + val + test
    total = classes * per_class
    for number in range(1, total + 1):
        noise_file = paint(folder / "jpg" / f"image_{number:05d}.png")
        noise_file.rename(noise_file.with_suffix(".jpg"))  # PIL reads the format from the content
    numbers = np.arange(total).reshape(classes, per_class) + 1
    savemat(folder / "imagelabels.mat", {"labels": np.arange(total) // per_class + 1})
    parts = np.split(numbers, [train, train + val], axis=1)
    savemat(folder / "setid.mat", dict(zip(("trnid", "valid", "tstid"), (part.ravel() for part in parts), strict=True)))
    return folder


def config_of(name: str, **options: Any) -> AnyData:
    """Return the config of a data set, at 16 pixels unless the options say otherwise."""
    config: AnyData = TypeAdapter(Data).validate_python({"name": name, "resolution": 16, **options})
    return config


def loaded(root: Path, name: str, **options: Any) -> Dataset:
    """Load a data set below `root`; see `config_of`."""
    return prepared(config_of(name, **options), root)


def refusal(root: Path, name: str, **options: Any) -> str:
    """Return the only problem of the UserError that loading a data set raises."""
    with pytest.raises(UserError) as caught:
        loaded(root, name, **options)
    (problem,) = caught.value.problems
    return problem


def packed(network: nn.Module) -> dict[str, Tensor]:
    """Return the network's state as safetensors needs it, contiguous."""
    return {name: value.contiguous() for name, value in network.state_dict().items()}
