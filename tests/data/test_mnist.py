"""MNIST: the real files where KDTRAIN_DATA has them."""

import shutil
from pathlib import Path

import pytest
import torch
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

    as_torchvision = transforms.Compose([transforms.Resize((32, 32)), transforms.ToTensor()])
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
    with pytest.raises(UserError) as caught:
        Mnist(name="mnist").load(tmp_path)
    (problem,) = caught.value.problems
    assert problem.startswith(f"recipe.data: mnist is not there (looked for {tmp_path / 'MNIST' / 'raw'})")
    assert f"torchvision.datasets.MNIST('{tmp_path}', download=True)" in problem
    assert "--data DIR or KDTRAIN_DATA" in problem


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
