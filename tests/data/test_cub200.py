"""CUB-200-2011: split within each class, and lists that must agree with each other and with the images."""

from pathlib import Path
from typing import Any

import pytest
import torch
from made_up_data import cub200, paint, refusal

from kdtrain.data.cub200 import Cub200, split
from kdtrain.data.registry import load


def config(**changes: Any) -> Cub200:
    return Cub200.model_validate({"name": "cub200", "resolution": 16} | changes)


def test_the_split_takes_a_fifth_of_each_class_and_a_fifth_of_the_rest_rounded_down() -> None:
    counts = [*range(1, 61)]
    labels = torch.arange(60).repeat_interleave(torch.tensor(counts))
    train, val, test = (torch.bincount(labels[part], minlength=60).tolist() for part in split(labels, 0))
    for n, in_train, in_val, in_test in zip(counts, train, val, test, strict=True):
        assert in_test == int(n / 5 + 1e-9)
        assert in_val == int((n - in_test) / 5 + 1e-9)
        assert in_train == n - in_test - in_val
    every = torch.cat(split(labels, 0))
    assert torch.equal(every.sort().values, torch.arange(len(labels)))


def test_the_split_is_drawn_from_its_seed_and_a_class_does_not_move_another() -> None:
    labels = torch.arange(4).repeat_interleave(30)
    assert all(torch.equal(a, b) for a, b in zip(split(labels, 0), split(labels, 0), strict=True))
    assert not torch.equal(split(labels, 0)[2], split(labels, 1)[2])
    fewer = split(labels[:60], 0)[2]
    assert torch.equal(split(labels, 0)[2][: len(fewer)], fewer)


def test_files_labels_and_classes_belong_together(tmp_path: Path) -> None:
    folder = cub200(tmp_path, (10, 12, 7))
    data = config().load(tmp_path)
    assert data.classes == ("001.Bird_1", "002.Bird_2", "003.Bird_3")
    assert (len(data.train), len(data.val), len(data.test)) == (7 + 8 + 5, 1 + 2 + 1, 2 + 2 + 1)
    seen = []
    for part in (data.train, data.val, data.test):
        files = part.images.source.files
        assert [data.classes[label] for label in part.labels] == [file.parent.name for file in files]
        seen += files
    assert sorted(seen) == sorted((folder / "images").rglob("*.png"))


def test_a_class_of_the_list_without_images_is_no_class(tmp_path: Path) -> None:
    folder = cub200(tmp_path)
    with (folder / "classes.txt").open("a") as file:
        file.write("4 004.Bird_4\n")
    assert config().load(tmp_path).summary()["classes"] == 3


def test_options_change_split_sizes_and_fingerprint(tmp_path: Path) -> None:
    cub200(tmp_path)
    plain, other, limited = (config(**c).load(tmp_path) for c in ({}, {"split_seed": 1}, {"limit_per_class": 3}))
    assert plain.test.images.source.files != other.test.images.source.files
    assert torch.bincount(limited.train.labels).tolist() == [3, 3, 3]
    assert len({plain.fingerprint, other.fingerprint, limited.fingerprint}) == 3


def edit(file: Path, line: int, text: str | None) -> None:
    """Line `line` replaced by `text`, or removed."""
    lines = file.read_text().splitlines()
    lines[line - 1 : line] = [] if text is None else [text]
    file.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(
    ("name", "line", "text", "place", "cause"),
    [
        ("image_class_labels.txt", 3, "99 1", 3, "images.txt has no image 99"),
        ("image_class_labels.txt", 3, "3 7", 3, "label 7 of image 3 is not in classes.txt"),
        ("image_class_labels.txt", 3, "3 0", 3, "label 0 of image 3 is not in classes.txt"),
        ("image_class_labels.txt", 3, "3 one", 3, "label one of image 3 is not in classes.txt"),
        ("image_class_labels.txt", 3, "2 1", 3, "2 stands in line 2 already"),
        ("image_class_labels.txt", 3, "3 2", 3, "label 2, 002.Bird_2, but lies in 001.Bird_1"),
        ("image_class_labels.txt", 3, "three", 3, "must be a number, a space and a text, got 'three'"),
        ("images.txt", 5, "1 001.Bird_1/bird_0004.png", 5, "1 stands in line 1 already"),
        ("images.txt", 5, "5 001.Bird_1/gone.png", 5, "001.Bird_1/gone.png is not there"),
        ("images.txt", 5, "5", 5, "must be a number, a space and a text, got '5'"),
        ("classes.txt", 2, "1 002.Bird_2", 2, "1 stands in line 1 already"),
    ],
)
def test_a_bad_line_is_named_with_file_line_and_cause(tmp_path, name, line, text, place, cause) -> None:
    folder = cub200(tmp_path)
    edit(folder / name, line, text)
    problem = refusal(tmp_path, config())
    assert problem.startswith(f"{folder / name}:{place}: ")
    assert problem.endswith(cause)


def test_an_image_without_label_is_named_where_it_is_listed(tmp_path: Path) -> None:
    folder = cub200(tmp_path)
    edit(folder / "image_class_labels.txt", 4, None)
    assert refusal(tmp_path, config()) == f"{folder / 'images.txt'}:4: image_class_labels.txt has no label for image 4"


def test_an_image_that_no_list_knows_is_refused_and_other_files_are_left_alone(tmp_path: Path) -> None:
    folder = cub200(tmp_path)
    (folder / "images" / "001.Bird_1" / "._bird_0000.png").write_bytes(b"")
    (folder / "images" / "001.Bird_1" / "Thumbs.db").write_bytes(b"")
    config().load(tmp_path)
    extra = paint(folder / "images" / "001.Bird_1" / "extra.png")
    assert refusal(tmp_path, config()) == f"{folder / 'images.txt'}: has no line for {extra}"


@pytest.mark.parametrize("part", ["images.txt", "image_class_labels.txt", "classes.txt", "images"])
def test_an_absent_part_says_what_to_fetch_and_where_it_goes(tmp_path: Path, part: str) -> None:
    folder = cub200(tmp_path)
    (folder / part).rename(folder / "elsewhere")
    problem = refusal(tmp_path, config())
    assert f"looked for {folder / part}" in problem
    assert "CUB_200_2011.tgz" in problem
    assert f"in {tmp_path}" in problem
    assert "--data DIR or KDTRAIN_DATA" in problem


def test_too_few_images_for_a_split_and_a_single_class_are_refused(tmp_path: Path) -> None:
    folder = cub200(tmp_path / "few", (3, 3))
    assert refusal(tmp_path / "few", config()) == f"recipe.data: {folder} leaves no image for the validation split"
    cub200(tmp_path / "one", (10,))
    assert "must give images to at least 2 classes, got 1" in refusal(tmp_path / "one", config())


@pytest.mark.data
def test_the_real_birds_are_split_as_setup_4_splits_them(real_data: Path) -> None:
    data = load(config(), real_data)
    source = real_data / "CUB_200_2011"
    counts = [len(list((source / "images" / name).glob("*.jpg"))) for name in data.classes]
    tests = [n // 5 for n in counts]
    vals = [(n - tested) // 5 for n, tested in zip(counts, tests, strict=True)]
    assert torch.bincount(data.test.labels).tolist() == tests
    assert torch.bincount(data.val.labels).tolist() == vals
    assert len(data.train) + len(data.val) + len(data.test) == sum(counts)
    if len(data.classes) == 200:
        assert (len(data.train), len(data.val), len(data.test)) == (7684, 1781, 2323)
    assert data.test.images.tta_view(torch.arange(4)).shape == (4, 10, 3, 16, 16)
    assert data.train.images.train_view(torch.arange(4), 0, 0).shape == (4, 3, 16, 16)
