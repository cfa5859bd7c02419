"""Views of whole batches against the same views of one PIL image after the other: bit for bit."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_up_data import flowers102, hymenoptera, loaded, paint
from PIL import Image
from torch import Tensor

from kdtrain.data.base import Dataset, as_floats
from kdtrain.data.batch_transforms import RandomResizedCropFlip
from kdtrain.data.cifar10 import Cifar10
from kdtrain.data.cub200 import Cub200
from kdtrain.data.flowers102 import Flowers102
from kdtrain.data.hymenoptera import Hymenoptera
from kdtrain.data.pillow_resize import resize, resize_each
from kdtrain.data.views import ArraySource, BatchedImages, ViewedImages

CPU = torch.device("cpu")
SIDES = [(32, 32), (500, 375), (37, 411), (200, 224), (64, 64), (10, 3), (1, 1), (97, 96)]


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def by_pillow(image: np.ndarray, resolution: int) -> Tensor:
    resized_image = Image.fromarray(image).resize((resolution, resolution), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(resized_image)).permute(2, 0, 1)


@pytest.mark.parametrize("resolution", [1, 20, 64, 128, 224])
@pytest.mark.parametrize("side", SIDES)
def test_a_batch_is_resized_as_pillow_resizes(side: tuple[int, int], resolution: int) -> None:
    image = noise(*side)
    batch = torch.from_numpy(image).permute(2, 0, 1)[None].expand(3, -1, -1, -1)
    assert torch.equal(resize(batch, resolution), by_pillow(image, resolution).expand(3, -1, -1, -1))


@pytest.mark.parametrize("values_at_once", [1, 1 << 25])
def test_images_of_different_sizes_are_resized_together_as_each_by_itself(values_at_once: int, monkeypatch) -> None:
    monkeypatch.setattr("kdtrain.data.pillow_resize.CHUNK_VALUES", values_at_once)
    images = [noise(*side) for side in SIDES]
    heights, widths = torch.tensor(SIDES).unbind(1)
    padded = torch.full((len(SIDES), 3, 500, 411), 255, dtype=torch.uint8)
    for box, image in zip(padded, images, strict=True):
        box[:, : image.shape[0], : image.shape[1]] = torch.from_numpy(image).permute(2, 0, 1)
    expected = torch.stack([by_pillow(image, 50) for image in images])
    assert torch.equal(resize_each(padded, heights, widths, 50), expected)


def cifar(**changes: Any) -> ViewedImages:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
    config = Cifar10.model_validate({"name": "cifar10", "resolution": 40} | changes)
    return ViewedImages(ArraySource(pixels), config._views())


def made_up(name: str, root: Path) -> Dataset:
    name, _, crop = name.partition(" ")
    if name == "image_folder":
        for number in range(16):
            size = (20 + 9 * (number // 2), 70 - 6 * (number // 2))
            paint(root / "photos" / ("ants", "bees")[number % 2] / f"{number // 2}.png", size)
        return loaded(root, name, folder="photos", resolution=20, augment="crop_flip", test_fraction=0.3)
    (flowers102 if name == "flowers102" else hymenoptera)(root)
    return loaded(root, name, resolution=20, **{"crop": crop} if crop else {})


def batched_on_cpu(images: ViewedImages, monkeypatch: pytest.MonkeyPatch) -> BatchedImages:
    """Return the images batched on the CPU, even if that is slower there."""
    monkeypatch.setattr(RandomResizedCropFlip, "fast_on_cpu", True)
    found = images.for_device(CPU)
    assert isinstance(found, BatchedImages)
    assert found.batched
    return found


def require_equal(batched: BatchedImages, images: ViewedImages, batch: Tensor) -> None:
    for seed, epoch in ((0, 0), (3, 11)):
        views = batched.train_view(batch, seed, epoch)
        assert views.dtype == torch.uint8
        assert views.stride() == images.train_view(batch, seed, epoch).stride()
        assert torch.equal(views, images.train_view(batch, seed, epoch))
    assert torch.equal(batched.eval_view(batch), images.eval_view(batch))
    assert batched.eval_view(batch).stride() == images.eval_view(batch).stride()


@pytest.mark.parametrize("name", ["flowers102", "flowers102 inception", "hymenoptera", "image_folder"])
def test_batches_are_the_views_of_their_images(name: str, tmp_path: Path, monkeypatch) -> None:
    images = made_up(name, tmp_path).train.images
    batch = torch.tensor([4, 0, 1, 4, 3])
    state = torch.random.get_rng_state()
    require_equal(batched_on_cpu(images, monkeypatch), images, batch)
    assert torch.equal(torch.random.get_rng_state(), state)
    every = torch.arange(len(images))
    assert not torch.equal(
        images.for_device(CPU).train_view(every, 0, 0), images.for_device(CPU).train_view(every, 0, 1)
    )


@pytest.mark.parametrize("resolution", [32, 40, 64, 128])
@pytest.mark.parametrize("augment", ["standard", "none"])
def test_batches_of_cifar10_are_the_views_of_their_images(resolution: int, augment: str, monkeypatch) -> None:
    images = cifar(resolution=resolution, augment=augment)
    require_equal(batched_on_cpu(images, monkeypatch), images, torch.tensor([7, 2, 2, 11, 0]))


def test_only_what_trains_on_batches_of_the_images_that_it_keeps_is_batched(tmp_path: Path) -> None:
    data = made_up("flowers102", tmp_path)
    assert data.train.images.for_device(CPU).batched
    assert data.train.images.for_device(CPU) is data.train.images.for_device(CPU)
    assert data.val.images.for_device(CPU) is data.val.images  # evaluation keeps the images of another pre-transform
    assert not data.val.images.for_device(CPU).batched


def test_random_resized_crops_are_made_of_one_image_after_the_other_without_a_gpu(tmp_path: Path) -> None:
    images = made_up("hymenoptera", tmp_path).train.images
    assert images.for_device(CPU) is images


def test_a_split_that_is_too_large_is_not_batched(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("kdtrain.data.views.MAX_BYTES_ON_DEVICE", 12 * 3 * 25 * 25 - 1)
    images = made_up("flowers102", tmp_path).train.images
    assert images.for_device(CPU) is images
    monkeypatch.setattr("kdtrain.data.image_files.MAX_MEMORY_BYTES", 3 * 25 * 25)
    (tmp_path / "again").mkdir()
    unread = made_up("flowers102", tmp_path / "again").train.images
    assert unread.for_device(CPU) is unread


# real images


@pytest.mark.data
@pytest.mark.parametrize(
    "config",
    [
        Cifar10(name="cifar10"),
        Cifar10(name="cifar10", resolution=96),
        Flowers102(name="flowers102"),
        Flowers102(name="flowers102", crop="inception", limit_per_class=1),
        Hymenoptera(name="hymenoptera", limit_per_class=20),
    ],
    ids=["cifar10", "cifar10 96", "flowers102", "flowers102 inception", "hymenoptera"],
)
def test_batches_of_real_images_are_their_views(config: Any, real_data: Path, monkeypatch) -> None:
    data = config.load(real_data)
    images = data.train.images
    batch = torch.randperm(len(images), generator=torch.Generator().manual_seed(1))[:40]
    require_equal(batched_on_cpu(images, monkeypatch), images, batch)


@pytest.mark.gpu
def test_bytes_become_the_same_floats_on_a_gpu() -> None:
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(as_floats(every.cuda()).cpu(), as_floats(every))


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["flowers102", "flowers102 inception", "hymenoptera", "image_folder", "cifar10"])
def test_views_made_on_a_gpu_are_those_of_the_cpu(name: str, tmp_path: Path) -> None:
    images = cifar() if name == "cifar10" else made_up(name, tmp_path).train.images
    on_gpu = images.for_device(torch.device("cuda"))
    assert isinstance(on_gpu, BatchedImages)
    batch = torch.tensor([4, 0, 1, 4, 3])
    views = on_gpu.train_view(batch, 3, 11)
    assert views.is_cuda
    assert torch.equal(views.cpu(), images.train_view(batch, 3, 11))
    assert torch.equal(on_gpu.eval_view(batch).cpu(), images.eval_view(batch))


def test_cub200_is_not_made_in_batches() -> None:
    assert Cub200(name="cub200")._views().train.batch_transform is None
