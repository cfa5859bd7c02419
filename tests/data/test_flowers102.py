"""Flowers102: the official splits, and official files that are damaged."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_up_data import flowers102, loaded, refusal
from scipy.io import savemat


def test_the_official_splits_are_read_as_they_are(tmp_path: Path) -> None:
    flowers102(tmp_path, classes=3, train=4, val=4, test=6)
    data = loaded(tmp_path, "flowers102")
    assert len(data.classes) == 102
    numbers = [[int(file.stem[-5:]) for file in part.images.source.files] for part in data.splits()]
    assert numbers[0] == [1, 2, 3, 4, 15, 16, 17, 18, 29, 30, 31, 32]
    for part, own in zip(data.splits(), numbers, strict=True):
        assert own == sorted(own)
        assert [(number - 1) // 14 for number in own] == part.labels.tolist()


SPLITS = {"trnid": [1, 2], "valid": [3], "tstid": [4]}


@pytest.mark.parametrize(
    ("name", "content", "cause"),
    [
        ("setid.mat", SPLITS | {"valid": [2, 3]}, "an image stands in two splits, or twice in one"),
        ("setid.mat", SPLITS | {"tstid": [43]}, "images must be 1 to 42"),
        ("setid.mat", {"trnid": [1, 2], "tstid": [4]}, "cannot be read as the official file (KeyError: 'valid'"),
        ("imagelabels.mat", {"labels": np.full(42, 103)}, "labels must be 1 to 102"),
        *(("setid.mat", damage, "cannot be read as the official file") for damage in (b"", b"no matrix", None)),
    ],
)
def test_a_damaged_or_contradictory_file_is_named_with_the_cause(
    name: str, content: Any, cause: str, tmp_path: Path
) -> None:
    file = flowers102(tmp_path) / name
    if isinstance(content, dict):
        savemat(file, content)
    else:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2] if content is None else content)
    assert refusal(tmp_path, "flowers102").startswith(f"{file}: {cause}")


def test_an_absent_image_is_named(tmp_path: Path) -> None:
    folder = flowers102(tmp_path)
    absent = folder / "jpg" / "image_00007.jpg"
    absent.unlink()
    labels = folder / "imagelabels.mat"
    assert refusal(tmp_path, "flowers102") == f"{absent}: is not there, though {labels} has its label"


@pytest.mark.data
def test_the_real_flowers_are_torchvisions(real_data: Path) -> None:
    from torchvision.datasets import Flowers102 as Official

    data = loaded(real_data, "flowers102")
    assert (len(data.train), len(data.val), len(data.test)) == (1020, 1020, 6149)
    for part, name in zip(data.splits(), ("train", "val", "test"), strict=True):
        official = Official(str(real_data), split=name)
        expected = sorted(zip((str(f) for f in official._image_files), official._labels, strict=True))
        ours = zip((str(f) for f in part.images.source.files), part.labels.tolist(), strict=True)
        assert list(ours) == expected
    assert torch.bincount(data.train.labels).tolist() == [10] * 102
