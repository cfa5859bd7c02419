"""image_folder: a user's own images, in every layout and with every mistake."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from made_up_data import config_of, loaded, paint, refusal
from PIL import Image
from pydantic import ValidationError

from kdtrain.data.base import Dataset
from kdtrain.data.decoding import EXTENSIONS
from kdtrain.data.notes import data_notes
from kdtrain.errors import UserError


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


def drawn_from(data: Dataset) -> list[set[str]]:
    """Return the parts that the images of train, validation and test come from."""
    return [{file.parts[-3] for file in split.images.source.files} for split in data.splits()]


@pytest.mark.parametrize("validation", ["val", "valid", "validation", "Valid"])
@pytest.mark.parametrize(("training", "testing"), [("train", "test"), ("Training", "TESTING")])
def test_a_validation_part_beside_train_and_test_is_the_validation_split(
    validation: str, training: str, testing: str, tmp_path: Path
) -> None:
    folder = parts(tmp_path, "val", "test")
    for name, now in (("val", validation), ("train", training), ("test", testing)):
        (folder / name).rename(folder / now)
    data = data_of(folder)
    assert [len(part) for part in data.splits()] == [20, 8, 8]
    assert drawn_from(data) == [{training}, {validation}, {testing}]
    assert data_notes(data, contents=False) == []


def test_without_a_validation_part_validation_comes_from_train(tmp_path: Path) -> None:
    data = data_of(parts(tmp_path, "test"))
    assert [len(part) for part in data.splits()] == [16, 4, 8]
    assert drawn_from(data) == [{"train"}, {"train"}, {"test"}]


def test_without_a_test_part_val_is_the_test_split_aloud_or_validation_with_a_test_fraction(tmp_path: Path) -> None:
    folder = parts(tmp_path, "valid")
    data = data_of(folder)
    assert [len(part) for part in data.splits()] == [16, 4, 8]
    assert drawn_from(data) == [{"train"}, {"train"}, {"valid"}]
    (note,) = data_notes(data, contents=False)
    assert note.startswith("image_folder: there is no test part, so valid is the test split")
    data = data_of(folder, test_fraction=0.3)
    assert [len(part) for part in data.splits()] == [14, 8, 6]
    assert drawn_from(data) == [{"train"}, {"valid"}, {"train"}]
    assert data_notes(data, contents=False) == []


@pytest.mark.parametrize(
    ("names", "split"), [(["val", "valid"], "val"), (["validation", "Val"], "val"), (["testing", "test"], "test"),
                         (["training"], "train")]
)  # fmt: skip
def test_two_names_for_one_split_are_refused(names: list[str], split: str, tmp_path: Path) -> None:
    folder = parts(tmp_path, *names)
    both = " and ".join(sorted({*names, *(["train"] if split == "train" else [])}))
    assert refused(folder) == f"recipe.data.folder: {folder} must have one folder for the {split} split, got {both}"


def test_a_fraction_of_a_split_that_has_its_own_part_is_refused(tmp_path: Path) -> None:
    folder = parts(tmp_path, "val", "test")
    for split in ("val", "test"):
        expected = f"recipe.data.{split}_fraction: the {split} part is {folder / split}; remove the fraction"
        assert refused(folder, **{f"{split}_fraction": 0.2}) == expected


def test_parts_without_a_train_part_and_parts_below_the_classes_are_refused(tmp_path: Path) -> None:
    folder = parts(tmp_path, "test", "val")
    (folder / "train").rename(folder / "learn")
    assert refused(folder) == f"recipe.data.folder: {folder} has test and val, but no train part; name it train"
    swapped = tmp_path / "swapped"
    for name in ("cat", "hound"):
        paint_classes(swapped / name, 3, 3)
    (swapped / "cat" / "cat").rename(swapped / "cat" / "Test")
    problem = refused(swapped, test_fraction=0.2)
    assert problem.endswith(f"splits must stand above the classes, as Test/cat, got {swapped / 'cat' / 'Test'}")


def test_images_in_subfolders_of_a_class_belong_to_the_class(tmp_path: Path) -> None:
    folder = paint_classes(tmp_path / "pets", 4, 4)
    paint_classes(folder / "cat", 10, 20)
    paint(folder / "hound" / "a" / "b" / "deep.png")
    data = data_of(folder, test_fraction=0.3)
    assert data.classes == ("cat", "hound")
    labels = torch.cat([split.labels for split in data.splits()])
    assert torch.bincount(labels).tolist() == [34, 5]


def test_images_of_every_ending_are_read_in_upper_and_lower_case(tmp_path: Path) -> None:
    for name in ("cat", "hound"):
        for ending in ("gif", "jfif", "JPG", "Png", "webp", "bmp", "TIFF"):
            paint(tmp_path / "pets" / name / f"a.{ending}")
    data = data_of(tmp_path / "pets", test_fraction=0.3)
    assert sum(len(part) for part in data.splits()) == 14
    assert data_notes(data, contents=False) == []


def test_links_are_followed_and_one_that_leads_back_is_refused(flat: Path, tmp_path: Path) -> None:
    (flat / "cat").rename(tmp_path / "elsewhere")
    (flat / "cat").symlink_to(tmp_path / "elsewhere")
    (flat / "hound" / "linked.png").symlink_to(flat / "cat" / "000.png")
    data = data_of(flat, test_fraction=0.3)
    assert sum(len(part) for part in data.splits()) == 31
    (flat / "hound" / "back").symlink_to(flat)
    assert "is a link to a folder above it" in refused(flat, test_fraction=0.3)


def test_the_background_is_part_of_the_recipe_and_changes_transparent_pixels(tmp_path: Path) -> None:
    for name in ("cat", "hound"):
        for number in range(4):
            paint(tmp_path / "pets" / name / f"{number}.png")
            Image.new("RGBA", (9, 9), (number, 0, 0, 0)).save(tmp_path / "pets" / name / f"{number}.png")
    seen = {}
    for background in ("white", "black", [10, 20, 30]):
        data = data_of(tmp_path / "pets", test_fraction=0.3, background=background)
        seen[str(background)] = data.train.images.eval_view(torch.tensor([0]))[0, :, 0, 0].tolist()
    assert seen == {"white": [255] * 3, "black": [0] * 3, "[10, 20, 30]": [10, 20, 30]}
    configs = [config_of("image_folder", folder="pets", background=each) for each in ("white", [255] * 3, "black")]
    dumps = [config.model_dump(mode="json") for config in configs]
    assert dumps[0] == dumps[1] != dumps[2]
    assert config_of(**dumps[2]) == configs[2]


@pytest.mark.parametrize("background", ["red", [1, 2], [1, 2, 256], [1, 2, "3"], [True, 0, 0], 7])
def test_a_background_that_is_no_colour_is_refused_with_the_choices(background: Any) -> None:
    with pytest.raises(ValidationError, match=r"must be white, black or \[red, green, blue\] of 0 to 255 each, got"):
        config_of("image_folder", folder="pets", background=background)


def test_a_folder_that_cannot_be_read_is_named(flat: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read every folder")
    (flat / "cat").chmod(0)
    assert refused(flat, test_fraction=0.3) == f"recipe.data: {flat / 'cat'} cannot be read (Permission denied)"


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


def test_a_class_may_lack_images_for_validation_or_test_and_is_noted(tmp_path: Path) -> None:
    folder = parts(tmp_path, "val", "test")
    for image in (folder / "test" / "hound").iterdir():
        image.unlink()
    shutil.rmtree(folder / "val" / "cat")
    notes = data_notes(data_of(folder), contents=False)
    assert [note.partition("the ")[2] for note in notes] == [
        "validation split has no image of 1 of 2 classes: cat", "test split has no image of 1 of 2 classes: hound",
    ]  # fmt: skip


def test_a_missing_class_an_empty_class_and_a_single_class_are_refused_with_the_folder(
    flat: Path, tmp_path: Path
) -> None:
    folder = parts(tmp_path, "test")
    (folder / "test" / "cat").rename(folder / "test" / "dog")
    assert refused(folder).startswith(f"recipe.data: {folder / 'test'} and {folder / 'train'} hold different")
    shutil.rmtree(folder / "test" / "dog")
    shutil.rmtree(folder / "test" / "hound")
    assert refused(folder) == f"recipe.data: {folder / 'test'} holds no image ({', '.join(EXTENSIONS)})"
    for image in (flat / "cat").iterdir():
        image.unlink()
    assert refused(flat, test_fraction=0.2).startswith(f"recipe.data: {flat / 'cat'} holds no image (.apng")
    (flat / "cat").rmdir()
    assert "a folder for each of at least 2 classes, got 1" in refused(flat, test_fraction=0.2)


@pytest.mark.parametrize(
    ("fractions", "split"),
    [({"val_fraction": 0.01, "test_fraction": 0.3}, "validation"), ({"test_fraction": 0.01}, "test"),
     ({"val_fraction": 0.99, "test_fraction": 0.3}, "train"), ({"test_fraction": 0.999}, "train")],
)  # fmt: skip
def test_a_split_without_images_is_refused_by_name(flat: Path, fractions: dict[str, float], split: str) -> None:
    assert refused(flat, **fractions) == f"recipe.data: {flat} leaves no image for the {split} split"


def test_names_that_are_not_utf_8_are_shown_with_escapes(flat: Path) -> None:
    before = data_of(flat, test_fraction=0.3)
    (flat / "cat" / "000.png").rename(flat / "cat" / os.fsdecode(b"0\xff\x1b.png"))
    (flat / "cat" / os.fsdecode(b"\xff\n.txt")).touch()
    data = data_of(flat, test_fraction=0.3)
    assert len(data.train) == len(before.train)
    assert data_notes(data)[0].endswith("(cat/\\xff\\n.txt)")


def test_a_pipe_named_like_an_image_is_refused_not_waited_for(flat: Path) -> None:
    os.mkfifo(flat / "cat" / "pipe.png")
    data = data_of(flat, test_fraction=0.3)
    with pytest.raises(UserError, match=r"pipe\.png: is not a file"):
        [split.images.check() for split in data.splits()]
    with pytest.raises(UserError, match=r"pipe\.png: is not a file"):
        data.train.images.digests()
