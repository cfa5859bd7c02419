"""CIFAR-10: torchvision checks the files' sums, so the splits are tested on the real ones."""

from pathlib import Path
from typing import Any

import pytest
import torch
from made_up_data import refusal

from kdtrain.data.base import Dataset
from kdtrain.data.cifar10 import Cifar10
from kdtrain.errors import UserError


def config(**changes: Any) -> Cifar10:
    return Cifar10.model_validate({"name": "cifar10"} | changes)


@pytest.fixture(scope="module")
def corrected(real_data: Path) -> Dataset:
    return config().load(real_data)


@pytest.fixture(scope="module")
def published(real_data: Path) -> Dataset:
    return config(convention="published").load(real_data)


@pytest.mark.data
def test_corrected_validates_on_500_of_each_class_of_train(corrected: Dataset) -> None:
    assert (len(corrected.train), len(corrected.val), len(corrected.test)) == (45000, 5000, 10000)
    assert torch.bincount(corrected.val.labels).tolist() == [500] * 10
    assert len(corrected.train) == config().train_images
    assert corrected.classes[:3] == ("airplane", "automobile", "bird")


@pytest.mark.data
def test_published_validates_on_the_test_images(corrected: Dataset, published: Dataset) -> None:
    assert (len(published.train), len(published.val), len(published.test)) == (50000, 10000, 10000)
    assert len(published.train) == config(convention="published").train_images
    some = torch.arange(0, 10000, 499)
    assert torch.equal(published.val.images.eval_view(some), published.test.images.eval_view(some))
    assert torch.equal(published.test.images.eval_view(some), corrected.test.images.eval_view(some))
    assert torch.equal(published.val.labels, published.test.labels)


@pytest.mark.data
def test_every_image_of_train_is_in_one_of_the_two_splits(corrected: Dataset, published: Dataset) -> None:
    ours = [image.tobytes() for part in (corrected.train, corrected.val) for image in part.images.source.pixels]
    assert sorted(ours) == sorted(image.tobytes() for image in published.train.images.source.pixels)


@pytest.mark.data
def test_images_keep_their_labels_and_limits_and_seeds_act(corrected: Dataset, real_data: Path) -> None:
    from torchvision.datasets import CIFAR10

    official = CIFAR10(str(real_data), train=True)
    label_of = {image.tobytes(): label for image, label in zip(official.data, official.targets, strict=True)}
    val = corrected.val
    assert [label_of[image.tobytes()] for image in val.images.source.pixels] == val.labels.tolist()
    limited = config(limit_per_class=20).load(real_data)
    other = config(limit_per_class=20, split_seed=1).load(real_data)
    for part in (limited.train, limited.val, limited.test):
        assert torch.bincount(part.labels).tolist() == [20] * 10
    assert len({corrected.fingerprint, limited.fingerprint, other.fingerprint}) == 3
    assert limited.test.images.eval_view(torch.arange(3)).shape == (3, 3, 128, 128)


def test_an_absent_cifar10_says_where_it_was_looked_for_and_how_to_get_it(tmp_path: Path) -> None:
    problem = refusal(tmp_path, config())
    assert problem.startswith(f"recipe.data: cifar10 is not there (looked for {tmp_path / 'cifar-10-batches-py'})")
    assert f"torchvision.datasets.CIFAR10('{tmp_path}', download=True)" in problem
    assert "--data DIR or KDTRAIN_DATA" in problem


@pytest.mark.data
def test_a_damaged_file_is_refused_with_the_folder(real_data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for file in (real_data / "cifar-10-batches-py").iterdir():
        (folder / file.name).symlink_to(file)
    (folder / "data_batch_3").unlink()
    (folder / "data_batch_3").write_bytes(b"cut")
    with pytest.raises(UserError, match="cifar-10-batches-py"):
        config().load(tmp_path)
