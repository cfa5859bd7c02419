"""CIFAR-10: torchvision checks the files' sums, so the splits are tested on the real ones."""

from pathlib import Path

import pytest
import torch
from made_up_data import loaded

from kdtrain.data.base import Dataset
from kdtrain.errors import UserError

pytestmark = pytest.mark.data


@pytest.fixture(scope="module")
def corrected(real_data: Path) -> Dataset:
    return loaded(real_data, "cifar10", resolution=32)


@pytest.fixture(scope="module")
def published(real_data: Path) -> Dataset:
    return loaded(real_data, "cifar10", resolution=32, convention="published")


def test_corrected_validates_on_500_of_each_class_of_train(corrected: Dataset) -> None:
    assert (len(corrected.train), len(corrected.val), len(corrected.test)) == (45000, 5000, 10000)
    assert torch.bincount(corrected.val.labels).tolist() == [500] * 10
    assert corrected.classes[:3] == ("airplane", "automobile", "bird")


def test_published_validates_on_the_test_images(corrected: Dataset, published: Dataset) -> None:
    assert (len(published.train), len(published.val), len(published.test)) == (50000, 10000, 10000)
    some = torch.arange(0, 10000, 499)
    assert torch.equal(published.val.images.eval_view(some), published.test.images.eval_view(some))
    assert torch.equal(published.test.images.eval_view(some), corrected.test.images.eval_view(some))
    assert torch.equal(published.val.labels, published.test.labels)


def test_every_image_of_train_is_in_one_of_the_two_splits_under_its_label(
    corrected: Dataset, published: Dataset, real_data: Path
) -> None:
    from torchvision.datasets import CIFAR10

    ours = [image.tobytes() for part in (corrected.train, corrected.val) for image in part.images.source.pixels]
    assert sorted(ours) == sorted(image.tobytes() for image in published.train.images.source.pixels)
    official = CIFAR10(str(real_data), train=True)
    label_of = {image.tobytes(): label for image, label in zip(official.data, official.targets, strict=True)}
    assert [label_of[image] for image in ours] == [*corrected.train.labels.tolist(), *corrected.val.labels.tolist()]


def test_limits_and_seeds_act(corrected: Dataset, real_data: Path) -> None:
    limited, other = (
        loaded(real_data, "cifar10", resolution=128, limit_per_class=20, split_seed=seed) for seed in (0, 1)
    )
    for part in limited.splits():
        assert torch.bincount(part.labels).tolist() == [20] * 10
    assert len({corrected.fingerprint, limited.fingerprint, other.fingerprint}) == 3
    assert limited.test.images.eval_view(torch.arange(3)).shape == (3, 3, 128, 128)


def test_a_damaged_file_is_refused_with_the_folder(real_data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for file in (real_data / "cifar-10-batches-py").iterdir():
        if file.name != "data_batch_3":
            (folder / file.name).symlink_to(file)
    (folder / "data_batch_3").write_bytes(b"cut")
    with pytest.raises(UserError, match="cifar-10-batches-py"):
        loaded(tmp_path, "cifar10")
