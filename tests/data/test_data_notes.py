"""Notes about a data set: what was left out, what is missing, what stands in two splits."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from made_up_data import hymenoptera, loaded, paint
from studies import sweep_file
from trainings import ALONE

from kdtrain.cli import plan, train
from kdtrain.config.sweep import load_sweep
from kdtrain.data.base import Dataset, tensor_dataset
from kdtrain.data.notes import data_notes
from kdtrain.study.description import describe


def pets(root: Path, **counts: int) -> Path:
    """Write train, val and test with this many cats and dogs each; return the folder."""
    for part, count in ({"train": 6, "val": 2, "test": 2} | counts).items():
        for name in ("cat", "dog"):
            for number in range(count):
                paint(root / "pets" / part / name / f"{part}{number}.png")
    return root / "pets"


def data_of(folder: Path, **options: Any) -> Dataset:
    return loaded(folder.parent, "image_folder", folder=folder.name, **options)


def test_a_data_set_without_peculiarities_has_no_notes(tmp_path: Path) -> None:
    assert data_notes(data_of(pets(tmp_path))) == []
    assert data_notes(loaded(tmp_path, "digits")) == []


def test_files_that_are_left_out_are_counted_and_named_once(tmp_path: Path) -> None:
    folder = pets(tmp_path)
    others = ("rejected/c.png", "rejected/d.png")
    for name in ("labels.csv", "train/readme.txt", "train/cat/a.heic", "val/dog/more/b.psd", *others):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    for hidden in (".DS_Store", "train/cat/._train0.png", ".cache/a.png"):
        (folder / hidden).parent.mkdir(exist_ok=True)
        (folder / hidden).write_bytes(b"")
    (note,) = data_notes(data_of(folder))
    assert note.startswith("image_folder: left out, ")
    assert note.endswith(": 6 (labels.csv, rejected/c.png, rejected/d.png and 3 more)")


def test_files_of_another_data_set_are_left_out_aloud_too(tmp_path: Path) -> None:
    (hymenoptera(tmp_path) / "train" / "ants" / "a.txt").write_text("")
    (note,) = data_notes(loaded(tmp_path, "hymenoptera"))
    assert note.endswith(": 1 (train/ants/a.txt)")


def test_a_class_without_an_image_in_a_split_is_named(tmp_path: Path) -> None:
    for name, count in (("cat", 20), ("dog", 2), ("owl", 20)):
        for number in range(count):
            paint(tmp_path / "pets" / name / f"{number}.png")
    notes = data_notes(data_of(tmp_path / "pets", test_fraction=0.1, val_fraction=0.1))
    assert notes == [
        "image_folder: the validation split has no image of 1 of 3 classes: dog",
        "image_folder: the test split has no image of 1 of 3 classes: dog",
    ]


@pytest.mark.parametrize(
    ("source", "copy", "said"),
    [("train/cat/train4", "test/cat/x", "1 of 5 images of the test split are also in the train split"),
     ("train/cat/train4", "val/dog/x", "1 of 5 images of the validation split are also in the train split"),
     ("val/cat/val1", "test/cat/x", "1 of 5 images of the test split are also in the validation split")],
)  # fmt: skip
def test_images_with_equal_content_in_two_splits_are_counted_and_the_first_is_named(
    source: str, copy: str, said: str, tmp_path: Path
) -> None:
    folder = pets(tmp_path)
    (folder / f"{copy}.png").write_bytes((folder / f"{source}.png").read_bytes())
    data = data_of(folder)
    assert data_notes(data) == [f"image_folder: {said}, for example {copy}.png ({source}.png)"]
    assert data_notes(data, contents=False) == []


def test_the_pixels_of_a_data_set_in_memory_are_compared() -> None:
    pixels = torch.arange(8, dtype=torch.uint8).view(8, 1, 1, 1).expand(8, 1, 2, 2).clone()
    pixels[7] = pixels[1]
    splits = (torch.arange(4), torch.tensor([4, 5]), torch.tensor([6, 7]))
    data = tensor_dataset("made up", pixels, torch.arange(8) % 2, ("a", "b"), splits)
    (note,) = data_notes(data)
    assert note.startswith("made up: 1 of 2 images of the test split are also in the train split, for example image 1")


def test_the_published_split_of_hymenoptera_says_that_validation_is_test(tmp_path: Path) -> None:
    hymenoptera(tmp_path)
    (note,) = data_notes(loaded(tmp_path, "hymenoptera", convention="published"))
    assert "11 of 11 images of the test split are also in the validation split" in note


def test_class_names_that_differ_only_in_case_are_noted(tmp_path: Path) -> None:
    for name in ("Cat", "cat"):
        for number in range(10):
            paint(tmp_path / "pets" / name / f"{number}.png")
    notes = data_notes(data_of(tmp_path / "pets", test_fraction=0.2))
    assert notes == ["image_folder: the names of the classes Cat and cat differ only in upper and lower case"]


def test_names_that_are_no_utf_8_can_be_printed(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path / "pets")
    for name in (b"caf\xe9", b"dog"):
        os.makedirs(folder + b"/" + name)
        for number in range(10):
            image = paint(tmp_path / "made" / f"{name!r}{number}.png")
            os.rename(image, folder + b"/" + name + b"/%d\xe9.png" % number)
    os.rename(paint(tmp_path / "a.png"), folder + b"/dog/\xff.txt")
    data = data_of(tmp_path / "pets", test_fraction=0.2)
    assert data.classes == ("caf\\xe9", "dog")
    (note,) = data_notes(data)
    assert note.endswith("(dog/\\xff.txt)")
    assert data.train.images.eval_view(torch.arange(len(data.train))).shape[0] == len(data.train)


@pytest.fixture
def peculiar(tmp_path: Path) -> tuple[dict[str, Any], list[str]]:
    """A data set below tmp_path with two notes."""
    folder = pets(tmp_path)
    (folder / "readme.txt").write_text("")
    (folder / "test" / "cat" / "x.png").write_bytes((folder / "train" / "cat" / "train0.png").read_bytes())
    config = {"name": "image_folder", "folder": "pets", "resolution": 16}
    return config, data_notes(loaded(tmp_path, **config))


def test_study_json_has_the_notes_of_every_option_of_the_data(peculiar: Any, tmp_path: Path) -> None:
    config, notes = peculiar
    assert len(notes) == 2
    pets(tmp_path / "other")
    data = config | {"folder": {"choice": ["other/pets", "pets"]}}
    about = describe(load_sweep(sweep_file(tmp_path, recipe={"data": data}, study={"published": None})), tmp_path)
    assert about["data_notes"] == notes


def test_the_plan_has_the_notes_that_need_no_reading(peculiar: Any, tmp_path: Path, capsys: Any) -> None:
    config, notes = peculiar
    file = sweep_file(tmp_path, recipe={"data": config})
    assert plan.main([str(file), "--data", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert f"note: {notes[0]}" in out
    assert notes[1] not in out


def test_a_single_training_begins_with_the_notes(peculiar: Any, tmp_path: Path, capsys: Any) -> None:
    config, notes = peculiar
    file = tmp_path / "alone.yaml"
    file.write_text(yaml.safe_dump(ALONE | {"data": config, "batch_size": 4, "epochs": 1}))
    options = ["--device", "cpu", "--data", str(tmp_path), "--results", str(tmp_path / "results")]
    assert train.main([str(file), *options]) == 0
    assert capsys.readouterr().out.splitlines()[:2] == [f"note: {note}" for note in notes]
