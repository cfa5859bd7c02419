"""Parts, excluded classes, hidden labels and transferred images: what the training split has, and what is refused."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from made_up_data import config_of, cub200, flowers102, hymenoptera, loaded, mnist, paint, paint_classes, refusal
from pydantic import ValidationError
from stand_in_device import StandIn

from kdtrain.data.base import HIDDEN, Dataset, Split
from kdtrain.data.notes import data_notes
from kdtrain.data.registry import AnyData, load


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a data folder with all made-up sets, and `pets`: two classes with 12 images a part, 9 without label."""
    root = tmp_path_factory.mktemp("data")
    for write in (cub200, flowers102, hymenoptera, mnist):
        write(root)
    mnist(root, train=5080, folder="KMNIST")
    for number in range(9):
        paint(paint_classes(root / "pets") / "unlabelled" / f"{number // 4}" / f"{number}.png")
    return root


SMALL_DIGITS = {"name": "digits", "resolution": 16}
OPTIONS: dict[str, dict[str, Any]] = {
    "digits": {}, "mnist": {}, "cub200": {}, "flowers102": {}, "hymenoptera": {}, "image_folder": {"folder": "pets"},
}  # fmt: skip
CLASS = {
    "digits": "3", "mnist": "3", "cub200": "002.Bird_2", "flowers102": "pink primrose", "hymenoptera": "ants",
    "image_folder": "cat",
}  # fmt: skip


def data_of(root: Path, name: str, **options: Any) -> Dataset:
    return loaded(root, name, **OPTIONS.get(name, {}) | options)


def images_of(split: Split) -> list[tuple[str, int]]:
    """Return the content and the label of each image."""
    return list(zip(split.images.digests(), split.labels.tolist(), strict=True))


def require_held_out_equal(data: Dataset, other: Dataset) -> None:
    for split, others in ((data.val, other.val), (data.test, other.test)):
        assert images_of(split) == images_of(others)
        assert HIDDEN not in split.labels


@pytest.mark.parametrize("name", OPTIONS)
def test_parts_are_disjoint_and_stratified_and_together_all_training_images(name: str, root: Path) -> None:
    whole = data_of(root, name)
    parts = [data_of(root, name, part={"of": 3, "index": index}) for index in range(3)]
    found = [images_of(data.train) for data in parts]
    assert sorted(image for part in found for image in part) == sorted(images_of(whole.train))
    assert max(map(len, found)) - min(map(len, found)) <= 1
    for label in set(whole.train.labels.tolist()):
        counts = [sum(own == label for _, own in part) for part in found]
        assert max(counts) - min(counts) <= 1
    for data in parts:
        require_held_out_equal(data, whole)
    again, other = (data_of(root, name, part={"of": 3, "index": 0}, split_seed=seed) for seed in (0, 1))
    assert images_of(again.train) == found[0] != images_of(other.train)


@pytest.mark.parametrize("name", OPTIONS)
def test_excluded_classes_leave_the_training_split_and_no_other(name: str, root: Path) -> None:
    whole, data = data_of(root, name), data_of(root, name, exclude_classes=[CLASS[name]])
    label = whole.classes.index(CLASS[name])
    assert images_of(data.train) == [image for image in images_of(whole.train) if image[1] != label]
    assert data.classes == whole.classes
    assert label in data.val.labels
    require_held_out_equal(data, whole)
    unseen = [set(each.summary().get("unseen_classes", ())) for each in (data, whole)]
    assert unseen[0] - unseen[1] == {label}
    assert any(note.endswith(f": {CLASS[name]}") for note in data_notes(data)) or name == "flowers102"


def test_the_order_of_excluded_classes_and_numbers_for_names_make_no_other_recipe() -> None:
    one = config_of("digits", exclude_classes=[7, 3])
    assert one == config_of("digits", exclude_classes=["3", "7", "7"])
    assert config_of("digits", exclude_classes=None) == config_of("digits")
    assert config_of("digits", exclude_classes=one.model_dump(mode="json")["exclude_classes"]) == one


@pytest.mark.parametrize("name", [name for name in OPTIONS if name != "flowers102"])  # of 3 of its 102 classes
def test_as_many_labels_of_each_class_are_kept_and_the_others_are_hidden(name: str, root: Path) -> None:
    whole = data_of(root, name)
    few, more = (data_of(root, name, labelled_per_class=count) for count in (1, 2))
    present = {label for label in whole.train.labels.tolist() if label != HIDDEN}
    for data, count in ((few, 1), (more, 2)):
        assert data.train.images.digests() == whole.train.images.digests()
        kept = data.train.labelled
        assert torch.equal(data.train.labels[kept], whole.train.labels[kept])
        assert Counter(data.train.labels[kept].tolist()) == dict.fromkeys(present, count)
        require_held_out_equal(data, whole)
        assert data.summary()["labels"] == len(kept) == count * len(present)
        assert data.summary()["train"] == len(whole.train)
    assert {*few.train.labelled.tolist()} < {*more.train.labelled.tolist()}
    assert len({data.fingerprint for data in (whole, few, more)}) == 3
    other = data_of(root, name, labelled_per_class=1, split_seed=1)
    assert other.fingerprint != few.fingerprint


@pytest.mark.parametrize("name", ["digits", "image_folder"])
@pytest.mark.parametrize("fraction", [0.1, 0.5])
def test_a_share_of_the_labels_is_kept_in_each_class(name: str, fraction: float, root: Path) -> None:
    whole, data = data_of(root, name), data_of(root, name, labelled_fraction=fraction)
    before, kept = (torch.bincount(split.labels[split.labelled]) for split in (whole.train, data.train))
    assert int(kept.sum()) == round(fraction * int(before.sum()))
    assert ((kept - fraction * before).abs() < 1).all()
    assert torch.equal(data.train.labels[data.train.labelled], whole.train.labels[data.train.labelled])


def test_a_class_that_keeps_no_label_is_noted(root: Path) -> None:
    data = data_of(root, "digits", labelled_fraction=0.004)
    assert len(data.train.labelled) == 4
    (note,) = data_notes(data)
    assert "labelled" in note
    assert " 6 of 10 classes" in note


@pytest.mark.parametrize(
    ("options", "place", "words"),
    [
        ({"labelled_per_class": 93}, "labelled_per_class", ["class 0", "89", "93"]),
        ({"labelled_per_class": 40, "part": {"of": 3, "index": 1}}, "labelled_per_class", ["class 0", "40"]),
        ({"labelled_fraction": 0.0001}, "labelled_fraction", ["898", "0.0001"]),
        ({"exclude_classes": ["three"]}, "exclude_classes", ["'three'", "0, 1, 2"]),
        ({"exclude_classes": ["33"]}, "exclude_classes", ["'33'", "nearest: 3"]),
        ({"exclude_classes": list(range(10))}, "exclude_classes", ["at least one class"]),
        ({"transfer": SMALL_DIGITS | {"exclude_classes": ["x"]}}, "transfer.exclude_classes", ["'x'"]),
    ],
    ids=str,
)  # fmt: skip
def test_what_the_data_do_not_have_is_refused_at_its_place(
    options: Any, place: str, words: list[str], root: Path
) -> None:
    problem = refusal(root, "digits", **options)
    assert problem.startswith(f"recipe.data.{place}: ")
    assert all(word in problem for word in words)


def test_a_part_with_fewer_images_than_classes_is_refused_where_only_the_images_tell_it(root: Path) -> None:
    """28 images of two classes and of none, which is one more for parts."""
    options = OPTIONS["image_folder"]
    problem = refusal(root, "image_folder", **options, part={"of": 10, "index": 9})
    assert problem.startswith("recipe.data.part.of: must be <= 9,")
    assert len(data_of(root, "image_folder", **options, part={"of": 9, "index": 8}).train) == 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"part": {"of": 1, "index": 0}}, ["of"]),
        ({"part": {"of": 3, "index": 3}}, ["index must be < 3", "got 3"]),
        ({"part": {"of": 3}}, ["index"]),
        ({"part": {"of": 5501, "index": 0}}, ["part.of must be <= 5500", "5501"]),
        ({"part": {"of": 4, "index": 0}, "limit_per_class": 3}, ["part.of must be <= 3", "4"]),
        ({"exclude_classes": []}, ["exclude_classes"]),
        ({"labelled_per_class": 0}, ["labelled_per_class"]),
        ({"labelled_fraction": 1.0}, ["labelled_fraction"]),
        ({"labelled_fraction": 0.0}, ["labelled_fraction"]),
        ({"labelled_fraction": 0.5, "labelled_per_class": 5}, ["labelled_fraction", "labelled_per_class"]),
        ({"transfer": {"name": "kmnist"}}, ["transfer.resolution must", "16", "32"]),
        ({"transfer": {"name": "cifar10", "resolution": 16}}, ["transfer.name must", "cifar10", "1 channel,", "3"]),
        ({"transfer": {"name": "kmnist", "resolution": 16, "labelled_per_class": 1}}, ["transfer.labelled_per_class"]),
        ({"transfer": {"name": "kmnist", "resolution": 16, "labelled_fraction": 0.1}}, ["transfer.labelled_fraction"]),
        (
            {"transfer": {"name": "kmnist", "resolution": 16, "transfer": {"name": "digits", "resolution": 16}}},
            ["transfer.transfer"],
        ),
    ],
    ids=str,
)
def test_options_that_contradict_each_other_are_refused_before_anything_is_read(options: Any, words: list[str]) -> None:
    with pytest.raises(ValidationError) as caught:
        config_of("mnist", **options)
    assert all(word in str(caught.value) for word in words)


def test_transferred_images_join_the_training_split_without_labels_and_with_their_own_views(root: Path) -> None:
    own = {"part": {"of": 2, "index": 1}, "exclude_classes": ["ki"], "limit_per_class": 6, "augment": {"scale": 0.5}}
    others = data_of(root, "kmnist", **own)
    plain = data_of(root, "mnist", labelled_per_class=3, augment={"rotate_degrees": 30})
    data = data_of(
        root, "mnist", labelled_per_class=3, augment={"rotate_degrees": 30},
        transfer={"name": "kmnist", "resolution": 16, **own},
    )  # fmt: skip
    assert 0 < len(others.train) < 30
    first = len(plain.train)
    assert data.train.labels.tolist() == [*plain.train.labels.tolist(), *[HIDDEN] * len(others.train)]
    assert data.train.images.digests() == [*plain.train.images.digests(), *others.train.images.digests()]
    assert data.train.images.name(first + 2) == others.train.images.name(2)
    require_held_out_equal(data, plain)
    mixed = torch.tensor([first + 2, 1, first, 0])
    views = data.train.images.train_view(mixed, 3, 4)
    assert torch.equal(views[[1, 3]], plain.train.images.train_view(torch.tensor([1, 0]), 3, 4))
    assert torch.equal(views[[0, 2]], others.train.images.train_view(torch.tensor([2, 0]), 3, 4))
    assert views.is_contiguous()
    assert data.train.images.batched
    with StandIn() as devices:
        there = data.train.images.for_device(devices.cuda(0)).train_view(mixed, 3, 4)
        assert torch.equal(there.cpu(), views)
    chosen = data.train.images.select(torch.tensor([0, 1, first, first + 2]))
    assert torch.equal(
        chosen.eval_view(torch.arange(4)), data.train.images.eval_view(torch.tensor([0, 1, first, first + 2]))
    )


@pytest.mark.parametrize("name", ["digits", "hymenoptera"])
def test_transferred_images_of_the_own_validation_or_test_split_are_refused(name: str, root: Path) -> None:
    """Another split seed moves some into the training split; images of the own training split may come twice."""
    same = {"name": name, "resolution": 16}
    whole, other = data_of(root, name, transfer=same), data_of(root, name, split_seed=1)
    problem = refusal(root, name, transfer=same | {"split_seed": 1})
    assert problem.startswith("recipe.data.transfer.name: ")
    of_training = set(other.train.images.digests())
    counts = [sum(digest in of_training for digest in split.images.digests()) for split in (whole.val, whole.test)]
    assert any(f"has {count}," in problem for count in counts if count)


def test_an_absent_data_set_that_is_transferred_is_told_at_its_place(tmp_path: Path) -> None:
    problem = refusal(tmp_path, "digits", transfer={"name": "kmnist", "resolution": 16})
    assert problem.startswith("recipe.data.transfer: kmnist is not there")


def test_parts_of_several_kinds_make_their_views_on_one_device(root: Path) -> None:
    birds = {"name": "cub200", "resolution": 16}  # AutoAugment: image by image
    data = data_of(root, "hymenoptera", transfer=birds)
    alone, others = data_of(root, "hymenoptera"), data_of(root, "cub200")
    every = torch.arange(len(data.train))
    expected = torch.cat(
        [each.train.images.train_view(torch.arange(len(each.train)), 1, 2) for each in (alone, others)]
    )
    assert torch.equal(data.train.images.train_view(every, 1, 2), expected)
    with StandIn() as devices:
        there = data.train.images.for_device(devices.cuda(0))
        assert not there.batched
        assert torch.equal(there.train_view(every, 1, 2), expected)
    assert data_notes(data) == []


def test_images_of_the_folder_unlabelled_join_the_training_split(root: Path, tmp_path: Path) -> None:
    data = data_of(root, "image_folder")
    labels = data.train.labels.tolist()
    assert (len(labels), labels.count(HIDDEN), data.summary()["labels"]) == (28, 9, 19)
    names = [data.train.images.name(index) for index in range(28) if labels[index] == HIDDEN]
    assert names == sorted(f"unlabelled/{number // 4}/{number}.png" for number in range(9))
    assert data_notes(data) == []
    limited = data_of(root, "image_folder", limit_per_class=3)
    assert Counter(limited.train.labels.tolist()) == {0: 3, 1: 3, HIDDEN: 3}

    folder = paint_classes(tmp_path / "pets")
    before = loaded(tmp_path, "image_folder", folder="pets").fingerprint
    paint(folder / "Unlabeled" / "a.png")
    (folder / "Unlabeled" / "list.txt").write_text("a")
    after = loaded(tmp_path, "image_folder", folder="pets")
    assert after.fingerprint != before
    (note,) = data_notes(after)
    assert note.endswith(": 1 (Unlabeled/list.txt)")
    paint(folder / "unlabelled" / "b.png")
    assert "Unlabeled and unlabelled" in refusal(tmp_path, "image_folder", folder="pets")
    (folder / "unlabelled" / "b.png").unlink()
    (folder / "Unlabeled").rename(tmp_path / "elsewhere")
    assert f"{folder / 'unlabelled'} holds no image" in refusal(tmp_path, "image_folder", folder="pets")
    paint(tmp_path / "flat" / "cat" / "a.png"), paint(tmp_path / "flat" / "unlabelled" / "b.png")
    beside = refusal(tmp_path, "image_folder", folder="flat", test_fraction=0.5)
    assert beside.startswith(f"recipe.data.folder: {tmp_path / 'flat' / 'unlabelled'} stands beside classes")


COMBINED: list[dict[str, Any]] = [
    {},
    {"limit_per_class": 7},
    {"part": {"of": 7, "index": 1}},
    {"part": {"of": 7, "index": 6}, "limit_per_class": 8},
    {"labelled_per_class": 2, "augment": {"translate": 0.1}},
    {"transfer": SMALL_DIGITS | {"part": {"of": 3, "index": 2}}},
    {"transfer": SMALL_DIGITS | {"augment": {"scale": 0.1}}},
]


@pytest.mark.parametrize("options", COMBINED, ids=str)
def test_the_config_knows_the_number_of_training_images_and_if_views_are_random(options: Any, root: Path) -> None:
    config = config_of("digits", **options)
    data = load(config, root)
    assert config.training_images == len(data.train)
    assert config.random_views == data.train.images.random_views


def test_the_number_of_training_images_is_unknown_where_only_the_images_tell_it() -> None:
    unknown = [{"exclude_classes": ["3"]}, {"transfer": {"name": "kmnist", "resolution": 16, "exclude_classes": ["o"]}}]
    assert [config_of("digits", **options).training_images for options in unknown] == [None, None]
    assert config_of("image_folder", folder="pets").training_images is None


@pytest.mark.parametrize("name", OPTIONS)
def test_without_options_a_data_set_is_what_its_own_reader_loads_and_its_dump_has_no_new_key(
    name: str, root: Path
) -> None:
    config: AnyData = config_of(name, **OPTIONS[name])
    assert load(config, root).fingerprint == config.load(root).fingerprint
    assert not {"part", "exclude_classes", "labelled_per_class", "labelled_fraction", "transfer"} & {
        *config.model_dump()
    }


def test_fashion_mnist_and_kmnist_have_the_classes_of_torchvision() -> None:
    from torchvision.datasets import KMNIST, FashionMNIST

    assert config_of("fashion_mnist").classes == tuple(FashionMNIST.classes)
    assert config_of("kmnist").classes == tuple(KMNIST.classes)
