"""Splits: stratified, disjoint, and drawn from a seed alone."""

import numpy as np
import pytest
import torch
from made_up_data import loaded
from PIL import Image
from trainings import NO_DATA

from kdtrain.data.base import limited, remaining, stratified, tensor_dataset

UNEVEN = torch.arange(5).repeat_interleave(torch.tensor([100, 50, 7, 3, 1]))[torch.randperm(161)]


@pytest.mark.parametrize("count", [0, 1, 5, 16, 80, 160, 161])
def test_a_stratified_draw_has_every_class_in_proportion_within_one_image(count: int) -> None:
    drawn = stratified(UNEVEN, count, 0, "test split")
    assert len(drawn) == len(drawn.unique()) == count
    assert torch.equal(drawn, drawn.sort().values)
    shares = torch.bincount(UNEVEN[drawn], minlength=5)
    assert (shares - count * torch.bincount(UNEVEN) / 161).abs().max() < 1


def test_a_draw_depends_on_seed_and_purpose_and_on_nothing_drawn_before() -> None:
    first = stratified(UNEVEN, 40, 0, "test split")
    torch.rand(1000)
    assert torch.equal(stratified(UNEVEN, 40, 0, "test split"), first)
    assert not torch.equal(stratified(UNEVEN, 40, 1, "test split"), first)
    assert not torch.equal(stratified(UNEVEN, 40, 0, "val split"), first)


@pytest.mark.parametrize("count", [-1, 162])
def test_more_than_there_is_cannot_be_drawn(count: int) -> None:
    with pytest.raises(ValueError, match=f"cannot draw {count} of 161 images"):
        stratified(UNEVEN, count, 0, "test split")


def test_a_limit_keeps_at_most_so_many_of_a_class_and_all_of_a_smaller_one() -> None:
    indices = torch.arange(161)
    kept = limited(UNEVEN, indices, 5, 0)
    assert torch.bincount(UNEVEN[kept]).tolist() == [5, 5, 5, 3, 1]
    assert torch.equal(kept, limited(UNEVEN, indices, 5, 0))
    assert not torch.equal(kept, limited(UNEVEN, indices, 5, 1))
    assert torch.equal(limited(UNEVEN, indices, None, 0), indices)


def test_what_remains_is_what_was_not_taken() -> None:
    assert remaining(6, torch.tensor([4, 0]), torch.tensor([5])).tolist() == [1, 2, 3]


def test_a_fingerprint_names_content_labels_and_splits() -> None:
    pixels, labels = torch.arange(4, dtype=torch.uint8).view(4, 1, 1, 1), torch.tensor([0, 1, 0, 1])
    splits = (torch.tensor([0, 1]), torch.tensor([2]), torch.tensor([3]))
    changed = pixels.clone()
    changed[3] = 9

    def mark(name="a", pixels=pixels, labels=labels, classes=("x", "y"), splits=splits) -> str:
        return tensor_dataset(name, pixels, labels, classes, splits).fingerprint

    others = [
        mark(name="b"), mark(pixels=changed), mark(labels=torch.tensor([0, 1, 0, 0])), mark(classes=("x", "y", "z")),
        mark(splits=(splits[0], splits[2], splits[1])), mark(splits=(torch.tensor([1, 0]), *splits[1:])),
    ]  # fmt: skip
    assert mark() == mark(pixels=pixels.clone())
    assert len(mark()) == 32
    assert len({mark(), *others}) == 7


@pytest.mark.parametrize("resolution", [8, 32, 33])
def test_digits_are_resized_as_torchvision_resizes_pil_images(resolution: int) -> None:
    from sklearn.datasets import load_digits
    from torchvision import transforms

    data = loaded(NO_DATA, "digits", resolution=resolution)
    as_torchvision = transforms.Compose([transforms.Resize((resolution, resolution)), transforms.PILToTensor()])
    raw = np.rint(load_digits().images * (255 / 16)).astype(np.uint8)
    expected = sorted(as_torchvision(Image.fromarray(image)).numpy().tobytes() for image in raw)
    ours = [split.images.eval_view(torch.arange(len(split))) for split in data.splits()]
    assert sorted(image.numpy().tobytes() for image in torch.cat(ours)) == expected
    assert torch.equal(ours[0], data.train.images.train_view(torch.arange(len(data.train)), seed=3, epoch=4))


def test_splits_of_digits_have_every_class_in_proportion() -> None:
    data = loaded(NO_DATA, "digits")
    total = torch.bincount(torch.cat([split.labels for split in data.splits()]))
    for split in (data.test, data.val):
        shares = torch.bincount(split.labels)
        assert (shares - len(split) * total / 1797).abs().max() < 1.1  # val: in proportion of what test has left
