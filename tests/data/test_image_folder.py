"""image_folder: a user's own images, in every layout and with every mistake."""

from pathlib import Path
from typing import Any

import pytest
import torch
from made_up_data import loaded, paint, refusal

from kdtrain.data.base import Dataset


def paint_classes(folder: Path, cats: int, hounds: int) -> Path:
    for name, count in (("cat", cats), ("hound", hounds)):
        for number in range(count):
            paint(folder / name / f"{number:03d}.png")
    return folder


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """<class>/<image>: 20 cats, 10 dogs."""
    return paint_classes(tmp_path / "pets", 20, 10)


def parts(root: Path, *held_out: str) -> Path:
    """train/<class>/<image> and other parts beside it."""
    for part in ("train", *held_out):
        paint_classes(root / "parts" / part, 10 if part == "train" else 4, 10 if part == "train" else 4)
    return root / "parts"


def data_of(folder: Path, **options: Any) -> Dataset:
    return loaded(Path("unused"), "image_folder", folder=str(folder), **options)


def refused(folder: Path, **options: Any) -> str:
    return refusal(Path("unused"), "image_folder", folder=str(folder), **options)


def test_fractions_are_taken_of_each_class(flat: Path) -> None:
    data = data_of(flat, test_fraction=0.3, val_fraction=0.2)
    assert data.classes == ("cat", "hound")
    assert torch.bincount(data.test.labels).tolist() == [6, 3]


@pytest.mark.parametrize(
    ("held_out", "tested"), [(["test"], "test"), (["val"], "val"), (["val", "test"], "test")], ids=str
)
def test_a_test_or_else_a_val_part_is_the_test_split_and_validation_comes_from_train(
    held_out: list[str], tested: str, tmp_path: Path
) -> None:
    data = data_of(parts(tmp_path, *held_out))
    assert [len(part) for part in data.splits()] == [16, 4, 8]
    assert {file.parts[-3] for file in data.test.images.source.files} == {tested}
    assert {file.parts[-3] for part in (data.train, data.val) for file in part.images.source.files} == {"train"}


def test_files_that_are_no_images_and_hidden_folders_are_left_alone(flat: Path) -> None:
    (flat / "cat" / "Thumbs.db").write_bytes(b"")
    (flat / ".cache").mkdir()
    data = data_of(flat, test_fraction=0.3)
    assert data.classes == ("cat", "hound")
    assert sum(len(part) for part in data.splits()) == 30


def test_the_fingerprint_changes_with_the_split_and_with_a_new_file(flat: Path) -> None:
    marks = [data_of(flat, test_fraction=0.3, split_seed=seed).fingerprint for seed in (0, 1)]
    paint(flat / "cat" / "200.png")
    assert len({*marks, data_of(flat, test_fraction=0.3).fingerprint}) == 3


def test_absent_parts_need_a_fraction_and_a_test_part_takes_none(flat: Path, tmp_path: Path) -> None:
    place = "recipe.data.test_fraction:"
    assert refused(flat) == f"{place} {flat} has no train and test part; write a fraction"
    folder = parts(tmp_path, "elsewhere")
    assert refused(folder).startswith(f"{place} {folder} has no test or val part")
    parts(tmp_path, "test")
    assert "remove the fraction" in refused(folder, test_fraction=0.2)


def test_a_missing_class_an_empty_class_and_a_single_class_are_refused_with_the_folder(
    flat: Path, tmp_path: Path
) -> None:
    folder = parts(tmp_path, "test")
    (folder / "test" / "cat").rename(folder / "test" / "dog")
    assert refused(folder).startswith(f"recipe.data: {folder / 'test'} and {folder / 'train'} hold different")
    for image in (flat / "cat").iterdir():
        image.unlink()
    assert refused(flat, test_fraction=0.2).startswith(f"recipe.data: {flat / 'cat'} holds no image (.jpg")
    (flat / "cat").rmdir()
    assert "a folder for each of at least 2 classes, got 1" in refused(flat, test_fraction=0.2)


@pytest.mark.parametrize(
    ("fractions", "split"),
    [({"val_fraction": 0.01, "test_fraction": 0.3}, "validation"), ({"test_fraction": 0.01}, "test"),
     ({"val_fraction": 0.99, "test_fraction": 0.3}, "train")],
)  # fmt: skip
def test_a_split_without_images_is_refused_by_name(flat: Path, fractions: dict[str, float], split: str) -> None:
    assert refused(flat, **fractions) == f"recipe.data: {flat} leaves no image for the {split} split"
