"""Flowers102: the official splits, and official files that are damaged."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_up_data import flowers102, refusal
from scipy.io import savemat

from kdtrain.data.flowers102 import Flowers102
from kdtrain.data.registry import load


def config(**changes: Any) -> Flowers102:
    return Flowers102.model_validate({"name": "flowers102", "resolution": 16} | changes)


def test_the_official_splits_are_read_as_they_are(tmp_path: Path) -> None:
    flowers102(tmp_path, classes=3, train=4, val=4, test=6)
    data = config().load(tmp_path)
    assert len(data.classes) == 102
    assert (len(data.train), len(data.val), len(data.test)) == (12, 12, 18)
    assert [file.name for file in data.train.images.source.files[:5]] == [
        "image_00001.jpg", "image_00002.jpg", "image_00003.jpg", "image_00004.jpg", "image_00015.jpg"
    ]  # fmt: skip
    for part in (data.train, data.val, data.test):
        assert [int(file.stem[-5:]) - 1 for file in part.images.source.files] == sorted(
            int(file.stem[-5:]) - 1 for file in part.images.source.files
        )
        assert [(int(file.stem[-5:]) - 1) // 14 for file in part.images.source.files] == part.labels.tolist()


def test_a_limit_is_drawn_from_the_split_seed(tmp_path: Path) -> None:
    flowers102(tmp_path, train=10)
    one, other = (config(limit_per_class=3, split_seed=seed).load(tmp_path) for seed in (0, 1))
    assert torch.bincount(one.train.labels).tolist() == [3, 3, 3]
    assert one.train.images.source.files != other.train.images.source.files
    assert one.fingerprint != other.fingerprint


@pytest.mark.parametrize("name", ["jpg", "imagelabels.mat", "setid.mat"])
def test_an_absent_part_says_how_to_fetch_it(tmp_path: Path, name: str) -> None:
    folder = flowers102(tmp_path)
    (folder / name).rename(folder / "elsewhere")
    problem = refusal(tmp_path, config())
    assert f"looked for {folder / name}" in problem
    assert f"torchvision.datasets.Flowers102('{tmp_path}', download=True)" in problem


def test_damaged_or_disagreeing_files_are_named_with_the_cause(tmp_path: Path) -> None:
    folder = flowers102(tmp_path)
    ids, labels = folder / "setid.mat", folder / "imagelabels.mat"
    whole = {file: file.read_bytes() for file in (ids, labels)}
    savemat(ids, {"trnid": [1, 2], "valid": [2, 3], "tstid": [4]})
    assert refusal(tmp_path, config()) == f"{ids}: an image stands in two splits, or twice in one"
    savemat(ids, {"trnid": [1, 2], "valid": [3], "tstid": [43]})
    assert refusal(tmp_path, config()).startswith(f"{ids}: images must be 1 to 42")
    savemat(ids, {"trnid": [1, 2], "tstid": [43]})
    assert "KeyError: 'valid'" in refusal(tmp_path, config())
    for damage in (b"", b"no matrix", whole[ids][: len(whole[ids]) // 2]):
        ids.write_bytes(damage)
        assert refusal(tmp_path, config()).startswith(f"{ids}: cannot be read as the official file")
    ids.write_bytes(whole[ids])
    savemat(labels, {"labels": np.full(42, 103)})
    assert refusal(tmp_path, config()) == f"{labels}: labels must be 1 to 102"
    labels.write_bytes(whole[labels])
    (folder / "jpg" / "image_00007.jpg").unlink()
    absent = folder / "jpg" / "image_00007.jpg"
    assert refusal(tmp_path, config()) == f"{absent}: is not there, though {labels} has its label"


@pytest.mark.data
def test_the_real_flowers_are_torchvisions(real_data: Path) -> None:
    from torchvision.datasets import Flowers102 as Official

    data = load(config(), real_data)
    assert (len(data.train), len(data.val), len(data.test)) == (1020, 1020, 6149)
    for part, name in ((data.train, "train"), (data.val, "val"), (data.test, "test")):
        official = Official(str(real_data), split=name)
        expected = sorted(zip((str(f) for f in official._image_files), official._labels, strict=True))
        ours = zip((str(f) for f in part.images.source.files), part.labels.tolist(), strict=True)
        assert list(ours) == expected
    assert torch.bincount(data.train.labels).tolist() == [10] * 102
