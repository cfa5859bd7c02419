"""Hymenoptera: the corrected and the published use of its two folders."""

from pathlib import Path
from typing import Any

import pytest
import torch
from made_up_data import hymenoptera

from kdtrain.data.hymenoptera import Hymenoptera
from kdtrain.data.registry import load
from kdtrain.errors import UserError


def config(**changes: Any) -> Hymenoptera:
    return Hymenoptera.model_validate({"name": "hymenoptera", "resolution": 16} | changes)


def folders(split) -> set[str]:
    return {file.parts[-3] for file in split.images.source.files}


def test_corrected_chooses_on_a_fifth_of_train_and_tests_on_the_folder_val(tmp_path: Path) -> None:
    hymenoptera(tmp_path, train=10, val=5)
    data = config().load(tmp_path)
    assert data.classes == ("ants", "bees")
    assert (len(data.train), len(data.val), len(data.test)) == (17, 4, 11)
    assert torch.bincount(data.val.labels).tolist() == [2, 2]
    assert folders(data.train) == folders(data.val) == {"train"}
    assert folders(data.test) == {"val"}
    assert not set(data.train.images.source.files) & set(data.val.images.source.files)


def test_published_trains_on_all_and_chooses_on_what_it_tests(tmp_path: Path) -> None:
    hymenoptera(tmp_path, train=10, val=5)
    data = config(convention="published").load(tmp_path)
    assert (len(data.train), len(data.val), len(data.test)) == (21, 11, 11)
    assert data.val.images.source.files == data.test.images.source.files
    assert folders(data.val) == {"val"}
    limited = config(convention="published", limit_per_class=2).load(tmp_path)
    assert limited.val.images.source.files == limited.test.images.source.files
    assert [len(part) for part in (limited.train, limited.val, limited.test)] == [4, 4, 4]


def test_options_change_the_split_and_the_fingerprint(tmp_path: Path) -> None:
    hymenoptera(tmp_path, train=30)
    variants = ({}, {"split_seed": 1}, {"limit_per_class": 3}, {"convention": "published"})
    loaded = [config(**variant).load(tmp_path) for variant in variants]
    assert len({data.fingerprint for data in loaded}) == 4
    assert len({tuple(data.val.images.source.files) for data in loaded}) == 4


@pytest.mark.parametrize("part", ["train", "val"])
def test_an_absent_part_an_absent_class_and_an_empty_class_are_named(tmp_path: Path, part: str) -> None:
    folder = hymenoptera(tmp_path) / part
    for image in (folder / "ants").iterdir():
        image.unlink()
    with pytest.raises(UserError, match=f"{folder / 'ants'} holds no image"):
        config().load(tmp_path)
    (folder / "ants").rename(folder / "aunts")
    with pytest.raises(UserError, match="hold different classes"):
        config().load(tmp_path)
    folder.rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=f"looked for {folder}.*hymenoptera_data.zip.*in {tmp_path}.*--data DIR"):
        config().load(tmp_path)


@pytest.mark.data
def test_the_real_ants_and_bees_are_244_and_153(real_data: Path) -> None:
    data, published = (load(config(convention=name), real_data) for name in ("corrected", "published"))
    assert (len(data.train), len(data.val), len(data.test)) == (195, 49, 153)
    assert (len(published.train), len(published.val), len(published.test)) == (244, 153, 153)
    for kind in (data, published):
        assert len(kind.train) == config(convention="published" if kind is published else "corrected").train_images
    whole = torch.bincount(torch.cat([data.train.labels, data.val.labels]))
    assert (torch.bincount(data.val.labels) - 49 * whole / 244).abs().max() < 1
    data.train.images.check()
    assert data.train.images.train_view(torch.arange(8), 0, 0).shape == (8, 3, 16, 16)
