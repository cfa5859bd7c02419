"""MNIST: the real files where KDTRAIN_DATA has them."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import made_up_data
import numpy as np
import pytest
import torch
from made_up_data import refusal
from PIL import Image

from kdtrain.data.base import Dataset
from kdtrain.data.mnist import Mnist
from kdtrain.errors import UserError


@pytest.fixture(scope="module")
def mnist(real_data: Path) -> Dataset:
    return Mnist(name="mnist").load(real_data)


@pytest.mark.data
def test_mnist_is_split_into_55000_5000_and_the_10000_test_images(mnist: Dataset) -> None:
    assert (len(mnist.train), len(mnist.val), len(mnist.test)) == (55000, 5000, 10000)
    assert mnist.image_shape == (1, 32, 32)
    whole = torch.bincount(torch.cat([mnist.train.labels, mnist.val.labels]))
    assert whole.sum() == 60000
    assert (torch.bincount(mnist.val.labels) - 5000 * whole / 60000).abs().max() < 1


@pytest.mark.data
def test_mnist_is_resized_exactly_as_torchvision_does_on_pil_images(mnist: Dataset, real_data: Path) -> None:
    from torchvision import transforms
    from torchvision.datasets import MNIST

    as_torchvision = transforms.Compose([transforms.Resize((32, 32)), transforms.PILToTensor()])
    source = MNIST(str(real_data), train=False)
    expected = torch.stack([as_torchvision(Image.fromarray(source.data[i].numpy())) for i in range(500)])
    assert torch.equal(mnist.test.images.eval_view(torch.arange(500)), expected)
    assert torch.equal(mnist.test.labels, source.targets)


@pytest.mark.data
def test_a_limited_mnist_has_so_many_of_each_class(real_data: Path) -> None:
    data = Mnist(name="mnist", resolution=28, limit_per_class=20).load(real_data)
    for split in (data.train, data.val, data.test):
        assert torch.bincount(split.labels).tolist() == [20] * 10


def test_an_absent_mnist_says_where_it_was_looked_for_and_how_to_get_it(tmp_path: Path) -> None:
    problem = refusal(tmp_path, Mnist(name="mnist"))
    assert problem.startswith(f"recipe.data: mnist is not there (looked for {tmp_path / 'MNIST' / 'raw'})")
    assert f"torchvision.datasets.MNIST('{tmp_path}', download=True)" in problem
    assert "--data DIR or KDTRAIN_DATA" in problem


FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda whole: b"",
    "two bytes": lambda whole: whole[:2],
    "header only": lambda whole: whole[:4],
    "cut off": lambda whole: whole[: len(whole) // 2],
    "longer": lambda whole: whole + b"more",
    "text": lambda whole: b"<!DOCTYPE html><title>404 Not Found</title>",
    "still compressed": lambda whole: b"\x1f\x8b\x08\x00" + whole,
    "no such type": lambda whole: whole[:2] + b"\x0a" + whole[3:],
    "floats": lambda whole: whole[:2] + b"\x0d" + whole[3:],
    "five sizes": lambda whole: whole[:3] + b"\x05" + whole[4:],
    "two sizes": lambda whole: whole[:3] + b"\x02" + whole[4:],
    "signed": lambda whole: whole[:2] + b"\x09" + whole[3:],
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named_with_the_cause_and_what_to_do(name: str, damage: str, tmp_path: Path) -> None:
    file = made_up_data.mnist(tmp_path, train=20, test=10) / name
    file.write_bytes(DAMAGES[damage](file.read_bytes()))
    problem = refusal(tmp_path, Mnist(name="mnist"))
    assert problem.startswith(f"recipe.data: {file} is no whole idx file of ")
    assert re.search(r" \(\w+.*\); remove it and fetch it with: python", problem)
    assert "\n" not in problem


@pytest.mark.parametrize("part", ["train", "t10k"])
@pytest.mark.parametrize("count", [30, 5200])
def test_images_and_labels_of_other_counts_are_refused(part: str, count: int, tmp_path: Path) -> None:
    raw = made_up_data.mnist(tmp_path, train=5100, test=40)
    labels = raw / f"{part}-labels-idx1-ubyte"
    made_up_data.idx(labels, (np.arange(count) % 10).astype(np.uint8))
    images = 5100 if part == "train" else 40
    with pytest.raises(UserError, match=f"{labels} has {count} labels, {part}-images-idx3-ubyte {images} images"):
        Mnist(name="mnist").load(tmp_path)


@pytest.mark.parametrize("part", ["train", "t10k"])
def test_a_label_that_is_no_digit_is_refused_with_its_place(part: str, tmp_path: Path) -> None:
    labels = made_up_data.mnist(tmp_path) / f"{part}-labels-idx1-ubyte"
    values = (np.arange(5100 if part == "train" else 40) % 10).astype(np.uint8)
    values[[17, 20]] = 10
    made_up_data.idx(labels, values)
    with pytest.raises(UserError, match=f"{labels}: labels must be the digits 0 to 9, got 10 for image 17"):
        Mnist(name="mnist").load(tmp_path)


@pytest.mark.parametrize("count", [10, 5000])
def test_fewer_images_than_validation_and_training_need_are_refused(count: int, tmp_path: Path) -> None:
    images = made_up_data.mnist(tmp_path, train=count) / "train-images-idx3-ubyte"
    with pytest.raises(UserError, match=f"{images} must hold more than the 5000 images of validation, got {count}"):
        Mnist(name="mnist").load(tmp_path)


def test_images_of_another_size_are_refused(tmp_path: Path) -> None:
    images = made_up_data.mnist(tmp_path) / "t10k-images-idx3-ubyte"
    made_up_data.idx(images, np.zeros((40, 14, 56), np.uint8))
    with pytest.raises(UserError, match=f"{images} must hold images of 28 x 28 pixels, got 14 x 56"):
        Mnist(name="mnist").load(tmp_path)


def test_a_whole_mnist_of_fewer_images_loads(tmp_path: Path) -> None:
    made_up_data.mnist(tmp_path)
    data = Mnist(name="mnist", resolution=16).load(tmp_path)
    assert (len(data.train), len(data.val), len(data.test)) == (100, 5000, 40)


@pytest.mark.data
def test_a_damaged_mnist_is_refused_with_the_folder(real_data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for file in (real_data / "MNIST" / "raw").iterdir():
        if file.suffix != ".gz":
            shutil.copyfile(file, folder / file.name)
    images = folder / "train-images-idx3-ubyte"
    images.write_bytes(images.read_bytes()[:1_000_000])
    with pytest.raises(UserError, match="MNIST/raw"):
        Mnist(name="mnist").load(tmp_path)
