"""The contract suite of data sets: what holds for each of them, on made-up files."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_up_data import config_of, cub200, flowers102, hymenoptera, loaded, mnist, paint, refusal
from PIL import Image

from kdtrain.data.base import Dataset


def pets(root: Path) -> None:
    for name, count in (("cat", 20), ("hound", 10)):
        for number in range(count):
            paint(root / "pets" / name / f"{number:03d}.png")


PETS = {"folder": "pets", "test_fraction": 0.3, "val_fraction": 0.2}
IN_ARRAYS = ("digits", "mnist", "fashion_mnist", "kmnist")
"""The data sets of grey images whose fingerprint has the resized pixels."""
SETS: dict[str, tuple[Callable[[Path], object], dict[str, Any], tuple[int, int, int]]] = {
    "digits": (lambda root: None, {}, (898, 300, 599)),
    "mnist": (mnist, {}, (100, 5000, 40)),
    "fashion_mnist": (partial(mnist, folder="FashionMNIST"), {}, (100, 5000, 40)),
    "kmnist": (partial(mnist, folder="KMNIST"), {}, (100, 5000, 40)),
    "hymenoptera": (hymenoptera, {}, (17, 4, 11)),
    "cub200": (cub200, {}, (20, 4, 5)),
    "flowers102": (flowers102, {}, (12, 12, 18)),
    "image_folder": (pets, PETS, (17, 4, 9)),
}
"""How a data set is written, its options, and the sizes of its splits."""


@pytest.fixture(scope="module", params=SETS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Write a data set; give its name and the data folder."""
    root = tmp_path_factory.mktemp(request.param)
    SETS[request.param][0](root)
    return request.param, root


def load(made: tuple[str, Path], **changes: Any) -> Dataset:
    name, root = made
    return loaded(root, name, **SETS[name][1] | changes)


def keys(data: Dataset) -> list[list[Any]]:
    """Return what identifies each image of train, validation and test: its file, or its pixels."""
    found = []
    for split in data.splits():
        source = getattr(split.images, "source", None)
        views = split.images.eval_view(torch.arange(len(split))) if source is None else []
        found.append(source.files if source is not None else [view.numpy().tobytes() for view in views])
    return found


def test_every_image_is_in_exactly_one_split(made: tuple[str, Path]) -> None:
    data, root = load(made), made[1]
    sizes = tuple(len(split) for split in data.splits())
    assert sizes == SETS[made[0]][2]
    every = [key for split in keys(data) for key in split]
    assert len(set(every)) == len(every) == sum(sizes)
    if isinstance(every[0], Path):
        assert sorted(every) == sorted(path for path in root.rglob("*") if path.suffix in (".png", ".jpg"))
    summary = {"name": made[0], "fingerprint": data.fingerprint, "classes": len(data.classes)}
    summary["labels"] = len(data.train)
    summary["val_classes"] = len(set(data.val.labels.tolist()))
    summary["val_most_frequent"] = max(data.val.labels.tolist().count(label) for label in range(len(data.classes)))
    if unseen := sorted(set(range(len(data.classes))) - set(data.train.labels.tolist())):
        summary["unseen_classes"] = unseen
    assert data.summary() == summary | dict(zip(("train", "val", "test"), sizes, strict=True))


def test_labels_are_those_of_the_class_folders(made: tuple[str, Path]) -> None:
    data = load(made)
    for split, files in zip(data.splits(), keys(data), strict=True):
        assert split.labels.dtype == torch.int64
        if made[0] in ("hymenoptera", "cub200", "image_folder"):
            assert [data.classes[label] for label in split.labels] == [file.parent.name for file in files]


def test_views_are_bytes_of_the_shape_that_the_config_promises(made: tuple[str, Path]) -> None:
    data, config = load(made), config_of(made[0], **SETS[made[0]][1])
    assert data.image_shape == config.image_shape == (1 if made[0] in IN_ARRAYS else 3, 16, 16)
    assert data.train.images.random_views == config.random_views
    for split in data.splits():
        for view in (split.images.train_view(torch.arange(3), 0, 0), split.images.eval_view(torch.arange(3))):
            assert (view.dtype, view.shape) == (torch.uint8, (3, *data.image_shape))


def test_a_limit_holds_in_each_split_and_is_drawn_from_the_split_seed(made: tuple[str, Path]) -> None:
    plain, one, same, other = (
        load(made, **{"limit_per_class": 2, "split_seed": seed} if seed is not None else {}) for seed in (None, 0, 0, 1)
    )
    for split, whole in zip(one.splits(), plain.splits(), strict=True):
        assert torch.bincount(split.labels).tolist() == torch.bincount(whole.labels).clamp(max=2).tolist()
    assert keys(one) == keys(same) != keys(other)
    assert one.fingerprint == same.fingerprint
    assert len({plain.fingerprint, one.fingerprint, other.fingerprint}) == 3


@pytest.mark.parametrize("name", [name for name in SETS if name != "digits"])
def test_the_fingerprint_changes_with_the_images_and_not_with_the_views(name: str, tmp_path: Path) -> None:
    SETS[name][0](tmp_path)
    known = load((name, tmp_path)).fingerprint
    if name not in IN_ARRAYS:
        assert load((name, tmp_path), resolution=20).fingerprint == known
    file = min(path for path in tmp_path.rglob("*") if path.suffix in (".png", ".jpg") or "train-images" in path.name)
    if name in IN_ARRAYS:
        file.write_bytes(file.read_bytes()[:-400] + bytes(400))
    else:
        Image.fromarray(np.zeros((31, 24, 3), np.uint8)).save(file, "png")
    assert load((name, tmp_path)).fingerprint != known


FETCH = "torchvision.datasets.{}('{{root}}', download=True)"
ABSENT = [
    ("mnist", "MNIST/raw", FETCH.format("MNIST")),
    ("fashion_mnist", "FashionMNIST/raw", FETCH.format("FashionMNIST")),
    ("kmnist", "KMNIST/raw", FETCH.format("KMNIST")),
    ("cifar10", "cifar-10-batches-py", FETCH.format("CIFAR10")),
    *(("flowers102", f"flowers-102/{part}", FETCH.format("Flowers102"))
      for part in ("jpg", "imagelabels.mat", "setid.mat")),
    *(("hymenoptera", f"hymenoptera_data/{part}", "hymenoptera_data.zip of PyTorch's transfer learning tutorial")
      for part in ("train", "val")),
    *(("cub200", f"CUB_200_2011/{part}", "CUB_200_2011.tgz, the archive of Caltech-UCSD Birds-200-2011, in {root}")
      for part in ("images.txt", "image_class_labels.txt", "classes.txt", "images")),
    ("image_folder", "pets", "<class>/<image>"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "part", "how"), ABSENT, ids=lambda value: value[:40])
def test_an_absent_part_is_named_with_how_to_get_it(name: str, part: str, how: str, tmp_path: Path) -> None:
    write, options, _ = SETS.get(name, (lambda root: None, {}, ()))
    write(tmp_path)
    if (tmp_path / part).exists():
        (tmp_path / part).rename(tmp_path / "elsewhere")
    problem = refusal(tmp_path, name, **options)
    assert problem.startswith(f"recipe.data: {name} is not there (looked for {tmp_path / part})")
    assert how.format(root=tmp_path) in problem
    assert "--data DIR or KDTRAIN_DATA" in problem


REAL = [
    ("digits", {}),
    ("mnist", {}),
    ("flowers102", {}),
    *((name, {"convention": kind}) for name in ("cifar10", "hymenoptera") for kind in ("corrected", "published")),
]


@pytest.mark.data
@pytest.mark.parametrize(("name", "options"), REAL, ids=str)
def test_the_real_files_have_the_sizes_that_the_config_promises(
    name: str, options: dict[str, Any], real_data: Path
) -> None:
    config, data = config_of(name, **options), loaded(real_data, name, **options)
    assert (len(data.train), len(data.classes)) == (config.train_images, config.class_count)
