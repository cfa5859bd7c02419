"""Training views that are turned, scaled and shifted: against scipy's interpolation, and as pure functions."""

import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_up_data import config_of, flowers102, hymenoptera, loaded, mnist
from pydantic import ValidationError
from scipy.ndimage import affine_transform
from stand_in_device import StandIn

from kdtrain.data.base import Dataset, TensorImages
from kdtrain.data.joined_images import AffineImages
from kdtrain.data.random_affine import RandomAffine
from kdtrain.runtime.rng import uniform

ALL = {"rotate_degrees": 30.0, "translate": 0.2, "scale": 0.25}
EVERY = torch.arange(12)


def noise(channels: int = 3, side: int = 17, count: int = 12) -> TensorImages:
    return TensorImages(
        torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, channels, side, side), np.uint8))
    )


@pytest.mark.parametrize(
    "ranges", [ALL, *({key: value} for key, value in ALL.items())], ids=lambda ranges: "+".join(ranges)
)
def test_a_view_is_the_image_turned_scaled_and_shifted_by_what_the_image_and_the_epoch_draw(
    ranges: dict[str, float],
) -> None:
    images, side = noise(), 17
    views = AffineImages(images, RandomAffine(**ranges)).train_view(EVERY, 3, 5)
    turn, shift, scale = (ranges.get(key, 0.0) for key in ALL)
    for index in EVERY.tolist():
        a, s, x, y = (2 * number - 1 for number in uniform(4, 3, "affine", 5, index))
        angle, factor, moved = math.radians(turn * a), 1 + scale * s, np.array([shift * y, shift * x]) * side
        turned = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]]) * factor
        back, centre = np.linalg.inv(turned), np.full(2, (side - 1) / 2)
        for channel in range(3):
            image = images.pixels[index, channel].numpy().astype(float)
            offset = centre - back @ (centre + moved)
            expected = affine_transform(image, back, offset, order=1, mode="grid-constant", cval=0.0)
            assert np.abs(views[index, channel].numpy() - expected).max() < 1


def test_the_ranges_are_reached_and_not_exceeded_in_both_directions() -> None:
    dot = torch.zeros(1000, 1, 41, 41, dtype=torch.uint8)
    dot[:, :, 20, 20] = 255
    views = AffineImages(TensorImages(dot), RandomAffine(translate=0.25)).train_view(torch.arange(1000), 0, 0).double()
    for axis in (2, 3):
        moved = (views.sum(5 - axis)[:, 0] * torch.arange(41)).sum(1) / views.sum((1, 2, 3)) - 20
        assert moved.abs().max() <= 10.3
        assert moved.min() < -9.5
        assert moved.max() > 9.5
        assert moved.mean().abs() < 0.6


def test_what_comes_from_outside_is_black() -> None:
    white = TensorImages(torch.full((12, 3, 16, 16), 255, dtype=torch.uint8))
    views = AffineImages(white, RandomAffine(rotate_degrees=45)).train_view(EVERY, 0, 0)
    assert (views[:, :, 8, 8] == 255).all()
    assert (views[:, :, 0, 0] == 0).any()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("digits", {}),
        ("mnist", {}),
        ("flowers102", {}),
        ("hymenoptera", {}),
        ("image_folder", {"also": "crop_flip"}),
        ("image_folder", {}),
    ],
    ids=str,
)
def test_views_are_pure_functions_and_equal_for_batches_and_single_images(
    name: str, options: dict[str, Any], tmp_path: Path
) -> None:
    for write in (mnist, flowers102, hymenoptera):
        write(tmp_path)
    more = {"folder": "hymenoptera_data"} if name == "image_folder" else {}
    data, plain = (loaded(tmp_path, name, **more, **augment) for augment in ({"augment": ALL | options}, {}))
    images = data.train.images
    some = torch.tensor([4, 0, 11, 7])
    views = images.train_view(some, 1, 2)
    assert (views.dtype, views.shape) == (torch.uint8, (4, *data.image_shape))
    assert views.is_contiguous()
    assert torch.equal(torch.cat([images.train_view(each, 1, 2) for each in some[:, None]]), views)
    for seed, epoch in ((0, 2), (1, 3)):
        assert not torch.equal(images.train_view(some, seed, epoch), views)
    assert not torch.equal(plain.train.images.train_view(some, 1, 2), views)
    assert torch.equal(images.eval_view(some), plain.train.images.eval_view(some))
    for split, other in ((data.val, plain.val), (data.test, plain.test)):
        assert torch.equal(split.images.eval_view(EVERY[:3]), other.images.eval_view(EVERY[:3]))
    images.check()
    images.move_to_files(tmp_path)
    assert torch.equal(pickle.loads(pickle.dumps(images)).train_view(some, 1, 2), views)  # as in a loader process
    with StandIn() as devices:
        there = images.for_device(devices.cuda(0))
        assert there.batched == images.images.for_device(devices.cuda(0)).batched
        assert torch.equal(there.train_view(some, 1, 2).cpu(), views)
    assert data.fingerprint == plain.fingerprint


def random_state(data: Dataset) -> tuple[bool, str]:
    return data.train.images.random_views, data.train.images.transform_repr


def test_the_map_is_in_what_identifies_the_views_and_makes_them_random(tmp_path: Path) -> None:
    hymenoptera(tmp_path)
    for name, more in (("digits", {}), ("image_folder", {"folder": "hymenoptera_data"})):
        found = [
            random_state(loaded(tmp_path, name, **more, augment=augment))
            for augment in ("none", ALL, ALL | {"scale": 0.3}, ALL | {"translate": 0.3}, ALL | {"rotate_degrees": 3})
        ]
        assert [random for random, _ in found] == [False, True, True, True, True]
        assert len({text for _, text in found}) == 5
        assert config_of(name, **more, augment=ALL).random_views
        assert not config_of(name, **more, augment="none").random_views


def test_none_is_refused_where_training_is_random_in_any_case() -> None:
    for name in ("hymenoptera", "flowers102"):
        assert config_of(name).random_views
        with pytest.raises(ValidationError, match="augment cannot be none"):
            config_of(name, augment="none")
        assert config_of(name, augment=None) == config_of(name)
    assert config_of("digits", augment="none") == config_of("digits")


def test_the_map_comes_after_the_random_transforms_of_the_word_and_also_names_another(tmp_path: Path) -> None:
    from kdtrain.data.cifar10 import Cifar10

    def word(name: str, augment: Any) -> str:
        config: Any = config_of(name, augment=augment, **({"folder": "x"} if name == "image_folder" else {}))
        return config.augment if isinstance(config.augment, str) else config.augment.also

    for name, default in (("cifar10", "standard"), ("cub200", "standard"), ("image_folder", "none")):
        assert word(name, ALL) == default
        for other in ("none", "standard" if name != "image_folder" else "crop_flip"):
            assert word(name, ALL | {"also": other}) == word(name, other) == other
    with_crop, without = (
        Cifar10.model_validate({"name": "cifar10", "augment": ALL | {"also": also}})._views()
        for also in ("standard", "none")
    )
    assert with_crop.train is not with_crop.evaluation
    assert without.train is without.evaluation


@pytest.mark.parametrize("name", ["digits", "cifar10", "hymenoptera"])
@pytest.mark.parametrize(
    ("written", "rule"),
    [
        ({}, "above 0"),
        ({"rotate_degrees": 0, "scale": 0.0}, "above 0"),
        ({"rotate_degrees": -1}, "rotate_degrees"),
        ({"rotate_degrees": 181}, "rotate_degrees"),
        ({"translate": 1.5}, "translate"),
        ({"scale": 1}, "scale"),
        ({"shear": 3}, "shear"),
        ("random", ""),
    ],
    ids=str,
)
def test_a_map_that_changes_nothing_or_that_has_other_keys_is_refused(name: str, written: Any, rule: str) -> None:
    with pytest.raises(ValidationError) as caught:
        config_of(name, augment=written)
    (error,) = caught.value.errors()
    assert "augment" in error["loc"]
    assert rule in f"{error['loc']} {error['msg']}"
