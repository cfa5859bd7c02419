"""MNIST: damaged files, and the real ones if KDTRAIN_DATA has them."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from made_up_data import idx, loaded, mnist, refusal
from PIL import Image


@pytest.mark.data
def test_mnist_is_split_into_55000_5000_and_the_10000_test_images(real_data: Path) -> None:
    data = loaded(real_data, "mnist", resolution=28)
    assert [len(part) for part in data.splits()] == [55000, 5000, 10000]
    whole = torch.bincount(torch.cat([data.train.labels, data.val.labels]))
    assert whole.sum() == 60000
    assert (torch.bincount(data.val.labels) - 5000 * whole / 60000).abs().max() < 1


@pytest.mark.data
def test_a_fifth_of_mnist_with_ten_labels_of_each_class(real_data: Path) -> None:
    data = loaded(real_data, "mnist", part={"of": 5, "index": 4}, labelled_per_class=10)
    assert len(data.train) == 11000
    assert torch.bincount(data.train.labels[data.train.labelled]).tolist() == [10] * 10


@pytest.mark.data
def test_mnist_is_resized_exactly_as_torchvision_does_on_pil_images(real_data: Path) -> None:
    from torchvision import transforms
    from torchvision.datasets import MNIST

    data = loaded(real_data, "mnist", resolution=32)
    as_torchvision = transforms.Compose([transforms.Resize((32, 32)), transforms.PILToTensor()])
    source = MNIST(str(real_data), train=False)
    expected = torch.stack([as_torchvision(Image.fromarray(source.data[i].numpy())) for i in range(500)])
    assert torch.equal(data.test.images.eval_view(torch.arange(500)), expected)
    assert torch.equal(data.test.labels, source.targets)


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
    file = mnist(tmp_path, train=20, test=10) / name
    file.write_bytes(DAMAGES[damage](file.read_bytes()))
    problem = refusal(tmp_path, "mnist")
    assert problem.startswith(f"recipe.data: {file} is no whole idx file of ")
    assert re.search(r" \(\w+.*\); remove it and fetch it with: python", problem)
    assert "\n" not in problem


@pytest.mark.parametrize(("part", "images"), [("train", 5100), ("t10k", 40)])
@pytest.mark.parametrize("count", [30, 5200])
def test_images_and_labels_of_other_counts_are_refused(part: str, images: int, count: int, tmp_path: Path) -> None:
    labels = mnist(tmp_path, train=5100, test=40) / f"{part}-labels-idx1-ubyte"
    idx(labels, (np.arange(count) % 10).astype(np.uint8))
    expected = f"{labels} has {count} labels, {part}-images-idx3-ubyte {images} images"
    assert expected in refusal(tmp_path, "mnist")


@pytest.mark.parametrize(("part", "images"), [("train", 5100), ("t10k", 40)])
def test_a_label_that_is_no_class_is_refused_with_its_place(part: str, images: int, tmp_path: Path) -> None:
    labels = mnist(tmp_path) / f"{part}-labels-idx1-ubyte"
    values = (np.arange(images) % 10).astype(np.uint8)
    values[[17, 20]] = 10
    idx(labels, values)
    assert f"{labels}: labels must be 0 to 9, got 10 for image 17" in refusal(tmp_path, "mnist")


@pytest.mark.parametrize("count", [10, 5000])
def test_fewer_images_than_validation_and_training_need_are_refused(count: int, tmp_path: Path) -> None:
    images = mnist(tmp_path, train=count) / "train-images-idx3-ubyte"
    expected = f"{images} must hold more than the 5000 images of validation, got {count}"
    assert expected in refusal(tmp_path, "mnist")


def test_images_of_another_size_are_refused(tmp_path: Path) -> None:
    images = mnist(tmp_path) / "t10k-images-idx3-ubyte"
    idx(images, np.zeros((40, 14, 56), np.uint8))
    assert f"{images} must hold images of 28 x 28 pixels, got 14 x 56" in refusal(tmp_path, "mnist")
