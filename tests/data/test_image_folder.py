"""image_folder: a user's own images, in every layout and with every mistake."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import made_up_data
import pytest
import torch
from made_up_data import refusal

from kdtrain.data.image_folder import ImageFolder
from kdtrain.data.views import ViewedImages


def config(folder: str | Path, **changes: Any) -> ImageFolder:
    return ImageFolder.model_validate({"name": "image_folder", "folder": str(folder), "resolution": 16} | changes)


def paint(folder: Path, count: int, first: int = 0, size: tuple[int, int] = (30, 24)) -> None:
    for number in range(first, first + count):
        made_up_data.paint(folder / f"{number:03d}.png", size)


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """<class>/<image>: 20 cats, 10 dogs."""
    paint(tmp_path / "pets" / "cat", 20)
    paint(tmp_path / "pets" / "hound", 10)
    return tmp_path / "pets"


@pytest.fixture
def parts(tmp_path: Path) -> Callable[[str], Path]:
    """train/<class>/<image> and another part beside it."""

    def made(held_out: str) -> Path:
        for part, count in (("train", 10), (held_out, 4)):
            paint(tmp_path / "parts" / part / "cat", count, first=100 * len(part))
            paint(tmp_path / "parts" / part / "hound", count, first=100 * len(part))
        return tmp_path / "parts"

    return made


def all_files(*splits: ViewedImages) -> list[Path]:
    return sorted(file for split in splits for file in split.source.files)


def test_a_folder_of_classes_is_split_by_fractions_and_nothing_is_lost(flat: Path) -> None:
    data = config("pets", test_fraction=0.3, val_fraction=0.2).load(flat.parent)
    assert data.classes == ("cat", "hound")
    assert (len(data.train), len(data.val), len(data.test)) == (17, 4, 9)
    assert torch.bincount(data.test.labels).tolist() == [6, 3]
    assert all_files(data.train.images, data.val.images, data.test.images) == sorted(flat.rglob("*.png"))
    for split in (data.train, data.val, data.test):
        assert [data.classes[label] for label in split.labels] == [f.parent.name for f in split.images.source.files]


@pytest.mark.parametrize("held_out", ["test", "val"])
def test_a_test_or_else_a_val_part_is_the_test_split_and_validation_comes_from_train(parts, held_out: str) -> None:
    folder = parts(held_out)
    data = config(folder).load(Path("unused"))
    assert (len(data.train), len(data.val), len(data.test)) == (16, 4, 8)
    assert {file.parts[-3] for file in data.test.images.source.files} == {held_out}
    assert {file.parts[-3] for file in data.train.images.source.files + data.val.images.source.files} == {"train"}


def test_where_test_and_val_stand_side_by_side_test_is_tested(parts) -> None:
    parts("val")
    data = config(parts("test")).load(Path("unused"))
    assert {file.parts[-3] for file in data.test.images.source.files} == {"test"}


def test_files_that_are_no_images_and_hidden_folders_are_left_alone(flat: Path) -> None:
    (flat / "cat" / "Thumbs.db").write_bytes(b"")
    (flat / ".cache").mkdir()
    data = config(flat, test_fraction=0.3).load(Path("unused"))
    assert data.classes == ("cat", "hound")
    assert len(data.train) + len(data.val) + len(data.test) == 30


def test_the_fingerprint_changes_with_a_file_its_size_or_the_split(flat: Path) -> None:
    def mark(**changes: Any) -> str:
        return config(flat, **{"test_fraction": 0.3} | changes).load(Path("unused")).fingerprint

    known = mark()
    assert known == mark() == mark(resolution=20)  # how they are seen is said by the recipe
    assert known != mark(split_seed=1)
    paint(flat / "cat", 1, first=3, size=(31, 24))
    resized = mark()
    paint(flat / "cat", 1, first=200)
    assert len({known, resized, mark()}) == 3


def test_a_folder_that_is_not_there_is_named_with_the_layout(tmp_path: Path) -> None:
    problem = refusal(tmp_path, config("absent", test_fraction=0.2))
    assert f"looked for {tmp_path / 'absent'}" in problem
    assert "<class>/<image>" in problem
    assert "--data DIR or KDTRAIN_DATA" in problem


def test_absent_parts_need_a_fraction_and_a_test_part_takes_none(flat: Path, parts) -> None:
    assert (
        refusal(Path("unused"), config(flat))
        == f"recipe.data.test_fraction: {flat} has no train and test part; write a fraction"
    )
    folder = parts("elsewhere")
    assert refusal(Path("unused"), config(folder)).startswith(
        f"recipe.data.test_fraction: {folder} has no test or val part"
    )
    parts("test")
    assert "remove the fraction" in refusal(Path("unused"), config(folder, test_fraction=0.2))


def test_a_missing_class_an_empty_class_and_a_single_class_are_refused_with_the_folder(flat: Path, parts) -> None:
    folder = parts("test")
    (folder / "test" / "cat").rename(folder / "test" / "dog")
    assert refusal(Path("unused"), config(folder)).startswith(
        f"recipe.data: {folder / 'test'} and {folder / 'train'} hold different"
    )
    for image in (flat / "cat").iterdir():
        image.unlink()
    assert refusal(Path("unused"), config(flat, test_fraction=0.2)).startswith(
        f"recipe.data: {flat / 'cat'} holds no image (.jpg"
    )
    (flat / "cat").rmdir()
    assert "a folder for each of at least 2 classes, got 1" in refusal(Path("unused"), config(flat, test_fraction=0.2))


@pytest.mark.parametrize(
    ("fractions", "split"),
    [({"val_fraction": 0.01, "test_fraction": 0.3}, "validation"), ({"test_fraction": 0.01}, "test"),
     ({"val_fraction": 0.99, "test_fraction": 0.3}, "train")],
)  # fmt: skip
def test_a_split_without_images_is_refused_by_name(flat: Path, fractions: dict[str, float], split: str) -> None:
    assert (
        refusal(Path("unused"), config(flat, **fractions))
        == f"recipe.data: {flat} leaves no image for the {split} split"
    )
