"""CUB-200-2011: split within each class, and lists that must agree with each other and with the images."""

from pathlib import Path

import pytest
import torch
from made_up_data import cub200, loaded, paint, refusal

from kdtrain.data.cub200 import split


def test_the_split_takes_a_fifth_of_each_class_and_a_fifth_of_the_rest_rounded_down() -> None:
    counts = torch.arange(1, 61)
    labels = torch.arange(60).repeat_interleave(counts)
    _, val, test = (torch.bincount(labels[part], minlength=60) for part in split(labels, 0))
    assert torch.equal(test, counts // 5)
    assert torch.equal(val, (counts - test) // 5)
    assert torch.equal(torch.cat(split(labels, 0)).sort().values, torch.arange(len(labels)))


def test_the_split_is_drawn_from_its_seed_and_a_class_does_not_move_another() -> None:
    labels = torch.arange(4).repeat_interleave(30)
    assert all(torch.equal(a, b) for a, b in zip(split(labels, 0), split(labels, 0), strict=True))
    assert not torch.equal(split(labels, 0)[2], split(labels, 1)[2])
    fewer = split(labels[:60], 0)[2]
    assert torch.equal(split(labels, 0)[2][: len(fewer)], fewer)


def test_a_class_of_the_list_without_images_is_no_class(tmp_path: Path) -> None:
    with (cub200(tmp_path) / "classes.txt").open("a") as file:
        file.write("4 004.Bird_4\n")
    assert loaded(tmp_path, "cub200").classes == ("001.Bird_1", "002.Bird_2", "003.Bird_3")


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
    file = cub200(tmp_path) / name
    lines = file.read_text().splitlines()
    lines[line - 1] = text
    file.write_text("\n".join(lines) + "\n")
    problem = refusal(tmp_path, "cub200")
    assert problem.startswith(f"{file}:{place}: ")
    assert problem.endswith(cause)


def test_an_image_without_label_is_named_where_it_is_listed(tmp_path: Path) -> None:
    folder = cub200(tmp_path)
    labels = folder / "image_class_labels.txt"
    labels.write_text(labels.read_text().replace("\n4 1\n", "\n"))
    assert refusal(tmp_path, "cub200") == f"{folder / 'images.txt'}:4: {labels.name} has no label for image 4"


def test_an_image_that_no_list_knows_is_refused_and_other_files_are_left_alone(tmp_path: Path) -> None:
    folder = cub200(tmp_path)
    for name in ("._bird_0000.png", "Thumbs.db"):
        (folder / "images" / "001.Bird_1" / name).write_bytes(b"")
    loaded(tmp_path, "cub200")
    extra = paint(folder / "images" / "001.Bird_1" / "extra.png")
    assert refusal(tmp_path, "cub200") == f"{folder / 'images.txt'}: has no line for {extra}"


def test_too_few_images_for_a_split_and_a_single_class_are_refused(tmp_path: Path) -> None:
    folder = cub200(tmp_path / "few", (3, 3))
    assert refusal(tmp_path / "few", "cub200") == f"recipe.data: {folder} leaves no image for the validation split"
    cub200(tmp_path / "one", (10,))
    assert "must give images to at least 2 classes, got 1" in refusal(tmp_path / "one", "cub200")


@pytest.mark.data
def test_the_real_birds_are_split_as_setup_4_splits_them(real_data: Path) -> None:
    data = loaded(real_data, "cub200")
    folder = real_data / "CUB_200_2011" / "images"
    counts = [len(list((folder / name).glob("*.jpg"))) for name in data.classes]
    assert torch.bincount(data.test.labels).tolist() == [n // 5 for n in counts]
    assert torch.bincount(data.val.labels).tolist() == [(n - n // 5) // 5 for n in counts]
    assert sum(len(part) for part in data.splits()) == sum(counts)
    if len(data.classes) == 200:
        assert (len(data.train), len(data.val), len(data.test)) == (7684, 1781, 2323)
    assert data.test.images.tta_view(torch.arange(4)).shape == (4, 10, 3, 16, 16)
    assert data.train.images.train_view(torch.arange(4), 0, 0).shape == (4, 3, 16, 16)
