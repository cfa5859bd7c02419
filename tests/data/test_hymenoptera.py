"""Hymenoptera: the corrected and the published use of its two folders."""

from pathlib import Path

import pytest
import torch
from made_up_data import hymenoptera, loaded, paint, refusal

from kdtrain.data.base import Split
from kdtrain.data.notes import data_notes


def folders(split: Split) -> set[str]:
    return {file.parts[-3] for file in split.images.source.files}


def test_corrected_chooses_on_a_fifth_of_train_and_tests_on_the_folder_val(tmp_path: Path) -> None:
    hymenoptera(tmp_path, train=10, val=5)
    data = loaded(tmp_path, "hymenoptera")
    assert torch.bincount(data.val.labels).tolist() == [2, 2]
    assert folders(data.train) == folders(data.val) == {"train"}
    assert folders(data.test) == {"val"}


def test_published_trains_on_all_and_chooses_on_what_it_tests(tmp_path: Path) -> None:
    hymenoptera(tmp_path, train=10, val=5)
    data = loaded(tmp_path, "hymenoptera", convention="published")
    assert [len(part) for part in data.splits()] == [21, 11, 11]
    assert data.val.images.source.files == data.test.images.source.files
    assert folders(data.val) == {"val"}
    limited = loaded(tmp_path, "hymenoptera", convention="published", limit_per_class=2)
    assert limited.val.images.source.files == limited.test.images.source.files
    assert [len(part) for part in limited.splits()] == [4, 4, 4]


@pytest.mark.parametrize("part", ["train", "val"])
def test_an_absent_class_and_an_empty_class_are_named(tmp_path: Path, part: str) -> None:
    folder = hymenoptera(tmp_path) / part
    for image in (folder / "ants").iterdir():
        image.unlink()
    assert f"{folder / 'ants'} holds no image" in refusal(tmp_path, "hymenoptera")
    (folder / "ants").rename(folder / "aunts")
    assert "hold different classes" in refusal(tmp_path, "hymenoptera")


def test_the_placeholder_of_the_archive_is_no_image_and_is_noted(tmp_path: Path) -> None:
    """train/ants/imageNotFound.gif is none of the 244 images of the tutorial."""
    paint(hymenoptera(tmp_path) / "train" / "ants" / "imageNotFound.gif")
    data = loaded(tmp_path, "hymenoptera")
    assert sum(len(part) for part in data.splits()) == 32
    (note,) = data_notes(data)
    assert note.endswith(": 1 (train/ants/imageNotFound.gif)")


@pytest.mark.data
def test_the_real_ants_and_bees_are_244_and_153(real_data: Path) -> None:
    data, published = (loaded(real_data, "hymenoptera", convention=name) for name in ("corrected", "published"))
    assert [len(part) for part in data.splits()] == [195, 49, 153]
    assert [len(part) for part in published.splits()] == [244, 153, 153]
    whole = torch.bincount(torch.cat([data.train.labels, data.val.labels]))
    assert (torch.bincount(data.val.labels) - 49 * whole / 244).abs().max() < 1
    data.train.images.check()
