"""Views of every data set against torchvision's first-generation transforms, written out by hand."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_up_data import config_of, cub200, flowers102, hymenoptera
from PIL import Image
from torch import Tensor
from torchvision import transforms as t
from torchvision.transforms import v2

from kdtrain.data.base import Dataset, as_floats
from kdtrain.data.cifar10 import Cifar10
from kdtrain.data.views import ArraySource, ViewedImages
from kdtrain.runtime.rng import stream

R = 20
"""The resolution of the made-up sets; their images are 30 pixels high and 24 wide."""

AUTO = v2.AutoAugment(v2.AutoAugmentPolicy.IMAGENET)
"""Of the second generation: the first draws signs that it does not use, so equal seeds give other images."""


def central(image: Image.Image) -> Image.Image:
    """0.875 of 24 x 30: 1.5 and 1.875 pixels are cut at each side, whole ones."""
    assert image.size == (24, 30)
    return image.crop((1, 1, 23, 29))


CASES: dict[str, tuple[Callable[[Path], Path], Any, list[Any], list[Any]]] = {
    "hymenoptera": (
        hymenoptera, config_of("hymenoptera", resolution=R),
        [t.RandomResizedCrop(R), t.RandomHorizontalFlip()], [t.Resize(23), t.CenterCrop(R)],
    ),
    "cub200": (
        cub200, config_of("cub200", resolution=R), [t.Resize(22), t.RandomCrop(R), AUTO],
        [t.Resize(R), t.CenterCrop(R)],
    ),
    "cub200 plain": (
        cub200, config_of("cub200", resolution=R, augment="none"), [t.Resize(R), t.CenterCrop(R)],
        [t.Resize(R), t.CenterCrop(R)],
    ),
    "flowers102": (
        flowers102, config_of("flowers102", resolution=R),
        [t.Resize((25, 25)), t.RandomCrop(R), t.RandomHorizontalFlip()], [central, t.Resize((R, R))],
    ),
    "flowers102 inception": (
        flowers102, config_of("flowers102", resolution=R, crop="inception"),
        [t.RandomResizedCrop(R), t.RandomHorizontalFlip()], [central, t.Resize((R, R))],
    ),
    "image_folder": (
        hymenoptera, config_of("image_folder", folder="hymenoptera_data", resolution=R, augment="crop_flip"),
        [t.Resize(23), t.RandomResizedCrop(R), t.RandomHorizontalFlip()], [t.Resize(23), t.CenterCrop(R)],
    ),
}  # fmt: skip


@pytest.fixture(params=CASES)
def case(request, tmp_path: Path) -> tuple[Dataset, list[Any], list[Any]]:
    made_up, config, train, evaluation = CASES[request.param]
    made_up(tmp_path)
    return config.load(tmp_path), train, evaluation


def by_hand(images: list[Image.Image], steps: list[Any], seed: int | None = None, epoch: int = 0) -> Tensor:
    views = []
    for i, image in enumerate(images):
        if seed is not None:
            torch.manual_seed(stream(seed, "view", epoch, i))
        views.append(t.Compose([*steps, t.PILToTensor()])(image))
    return torch.stack(views)


def opened(images: ViewedImages) -> list[Image.Image]:
    return [Image.open(file).convert("RGB") for file in images.source.files]


def test_views_of_training_are_torchvisions_under_the_seed_of_image_and_epoch(case) -> None:
    data, train, _ = case
    images = data.train.images
    for seed, epoch in ((0, 0), (3, 11)):
        view = images.train_view(torch.arange(len(images)), seed, epoch)
        assert torch.equal(view, by_hand(opened(images), train, seed, epoch))
        assert view.shape[1:] == data.image_shape


def test_views_of_evaluation_are_torchvisions_in_every_split(case) -> None:
    data, _, evaluation = case
    for split in (data.train, data.val, data.test):
        view = split.images.eval_view(torch.arange(len(split)))
        assert torch.equal(view, by_hand(opened(split.images), evaluation))


def test_a_view_depends_on_nothing_seen_before_and_leaves_the_callers_random_numbers(case) -> None:
    images = case[0].train.images
    first = images.train_view(torch.tensor([1, 4, 2]), 5, 7)
    torch.rand(3), np.random.rand(3), random.random()
    images.eval_view(torch.tensor([2]))
    images.check()
    state = torch.random.get_rng_state()
    images.train_view(torch.tensor([0, 1]), 5, 8)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(images.train_view(torch.tensor([2, 1, 4]), 5, 7), first[[2, 0, 1]])


@pytest.mark.parametrize("name", CASES)
def test_a_config_knows_if_training_has_random_views(name: str, tmp_path: Path) -> None:
    made_up, config, _, _ = CASES[name]
    made_up(tmp_path)
    assert config.random_views == config.load(tmp_path).train.images.random_views == (name != "cub200 plain")


@pytest.mark.parametrize("name", ["cub200", "image_folder"])
def test_ten_crops_are_torchvisions_and_are_seen_in_every_split(name: str, tmp_path: Path) -> None:
    made_up, config, _, _ = CASES[name]
    made_up(tmp_path)
    data = config.model_copy(update={"test_time_augmentation": "ten_crop"}).load(tmp_path)
    steps = t.Compose(
        [t.Resize(22), t.TenCrop(R), lambda crops: torch.stack([t.PILToTensor()(crop) for crop in crops])]
    )
    for split in (data.val, data.test):
        view = split.images.tta_view(torch.arange(len(split)))
        assert torch.equal(view, torch.stack([steps(image) for image in opened(split.images)]))
        assert view.shape == (len(split), 10, 3, R, R)


def test_there_is_no_test_time_augmentation_unless_the_recipe_has_it(tmp_path: Path) -> None:
    for name, (made_up, config, _, _) in CASES.items():
        (tmp_path / name).mkdir()
        made_up(tmp_path / name)
        if name.startswith("cub200"):
            config = config.model_copy(update={"test_time_augmentation": "none"})
        assert config.load(tmp_path / name).test.images.tta_view(torch.arange(2)) is None


def cifar_images(**changes: Any) -> ViewedImages:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
    config = Cifar10.model_validate({"name": "cifar10", "resolution": 40} | changes)
    return ViewedImages(ArraySource(pixels), config._views())


def test_views_of_cifar10_are_torchvisions() -> None:
    images = cifar_images()
    pictures = [Image.fromarray(pixels) for pixels in images.source.pixels]
    train = [t.RandomCrop(32, padding=4), t.Resize(40), t.RandomHorizontalFlip()]
    every = torch.arange(12)
    assert torch.equal(images.train_view(every, 2, 9), by_hand(pictures, train, 2, 9))
    assert torch.equal(images.eval_view(every), by_hand(pictures, [t.Resize(40)]))
    plain = cifar_images(augment="none")
    assert torch.equal(plain.train_view(every, 2, 9), images.eval_view(every))
    assert images.tta_view(every) is None
    assert images.check() is None


def test_bytes_become_the_floats_of_torchvisions_to_tensor_bit_for_bit() -> None:
    every = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    floats = as_floats(torch.from_numpy(every).permute(2, 0, 1))
    assert floats.dtype == torch.float32
    assert torch.equal(floats, t.ToTensor()(Image.fromarray(every)))
