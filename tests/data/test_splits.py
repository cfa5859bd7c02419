"""Splits: stratified, disjoint, and drawn from a seed alone."""

import pytest
import torch
from trainings import NO_DATA

from kdtrain.data.base import fingerprint, limited, remaining, stratified
from kdtrain.data.digits import Digits


def digits(**changes: object) -> Digits:
    return Digits.model_validate({"name": "digits", "resolution": 8} | changes)


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
    labels, train, val = torch.tensor([0, 1, 0]), torch.tensor([0, 1]), torch.tensor([2])
    known = fingerprint("digits", b"pixels", labels, train, val)
    assert len(known) == 32
    assert known == fingerprint("digits", b"pixels", labels.clone(), train, val)
    others = [
        fingerprint("mnist", b"pixels", labels, train, val),
        fingerprint("digits", b"pixelz", labels, train, val),
        fingerprint("digits", b"pixels", torch.tensor([1, 1, 0]), train, val),
        fingerprint("digits", b"pixels", labels, torch.tensor([0]), torch.tensor([1, 2])),
    ]
    assert len({known, *others}) == 5


def test_the_digits_are_split_into_898_300_and_599_images_of_ten_classes() -> None:
    data = digits().load(NO_DATA)
    assert (len(data.train), len(data.val), len(data.test)) == (898, 300, 599)
    assert data.classes == tuple("0123456789")
    total = torch.bincount(torch.cat([data.train.labels, data.val.labels, data.test.labels]))
    assert total.sum() == 1797
    for split in (data.test, data.val):
        shares = torch.bincount(split.labels)
        assert (shares - len(split) * total / 1797).abs().max() < 1.1  # val: in proportion of what test has left
    assert data.summary() == {
        "name": "digits", "fingerprint": data.fingerprint, "classes": 10, "train": 898, "val": 300, "test": 599
    }  # fmt: skip


def test_no_digit_is_in_two_splits_and_none_is_lost() -> None:
    from sklearn.datasets import load_digits

    data = digits().load(NO_DATA)
    parts = [split.images.eval_view(torch.arange(len(split))) for split in (data.train, data.val, data.test)]
    seen = sorted(torch.cat(parts).flatten(1).int().tolist())
    pixels = load_digits().images.reshape(-1, 64)
    assert seen == sorted((pixels * (255 / 16)).round().astype(int).tolist())


def test_another_split_seed_is_another_split_and_another_fingerprint() -> None:
    one, same, other = (digits(split_seed=seed).load(NO_DATA) for seed in (0, 0, 1))
    assert one.fingerprint == same.fingerprint != other.fingerprint
    assert not torch.equal(one.test.labels, other.test.labels)


@pytest.mark.parametrize("limit", [1, 6])
def test_a_limit_per_class_holds_in_each_split(limit: int) -> None:
    data = digits(limit_per_class=limit).load(NO_DATA)
    for split in (data.train, data.val, data.test):
        assert torch.bincount(split.labels).tolist() == [limit] * 10


@pytest.mark.parametrize("resolution", [8, 16, 32, 33])
def test_digits_have_one_channel_of_the_resolution_whose_values_fill_a_byte(resolution: int) -> None:
    data = digits(resolution=resolution).load(NO_DATA)
    images = data.train.images.eval_view(torch.arange(50))
    assert images.shape == (50, 1, resolution, resolution)
    assert data.image_shape == digits(resolution=resolution).image_shape == (1, resolution, resolution)
    assert images.dtype == torch.uint8
    assert images.min() == 0
    assert images.max() > 230
    assert torch.equal(images, data.train.images.train_view(torch.arange(50), seed=3, epoch=4))


def test_digits_are_resized_as_torchvision_resizes_pil_images() -> None:
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits
    from torchvision import transforms

    data = digits(resolution=32, limit_per_class=10).load(NO_DATA)
    as_torchvision = transforms.Compose([transforms.Resize((32, 32)), transforms.PILToTensor()])
    raw = np.rint(load_digits().images * (255 / 16)).astype(np.uint8)
    known = {as_torchvision(Image.fromarray(image)).numpy().tobytes() for image in raw}
    ours = data.train.images.eval_view(torch.arange(len(data.train)))
    assert all(image.numpy().tobytes() in known for image in ours)
