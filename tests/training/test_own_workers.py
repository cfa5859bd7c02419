"""What another number of workers is refused for, before any of them waits for another: so one process shows it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from runs import BATCH_NORM_STUDENT
from trainings import NO_DATA, recipe, trained, workspace

from kdtrain.data.registry import load
from kdtrain.errors import UserError
from kdtrain.runtime import distributed
from kdtrain.training.assembly import assemble
from kdtrain.training.state import TrainState
from kdtrain.training.trainer import train

OF_EACH = {"batch_norm": "per_worker"}


def begun(device: str, **changes: Any) -> TrainState:
    """60 images of 16 pixels: the last maps of this student are 1 x 1."""
    config = recipe(student=BATCH_NORM_STUDENT, **changes)
    return assemble(config, load(config.data, NO_DATA), None, torch.device(device))


@pytest.mark.parametrize("workers", [1, 3])
def test_one_image_has_no_statistics_with_any_number_of_workers(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "size", lambda: workers)
    with pytest.raises(UserError, match=r"recipe.batch_size: 59 leaves 1 of 60 images .* the batch normalisation"):
        begun("cpu", batch_size=59)


def test_with_statistics_per_worker_each_needs_two_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "size", lambda: 3)
    with pytest.raises(UserError, match=r"batch_size: 55 leaves 5 of 60 images for the last batch, shared by 3 work"):
        begun("cpu", batch_size=55, **OF_EACH)


def test_on_gpus_each_needs_an_image_for_global_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "size", lambda: 3)
    with pytest.raises(UserError, match=r"batch_size: 58 leaves 2 of 60 images .* shared by 3 workers, but on a GPU"):
        begun("cuda", batch_size=58)


@pytest.mark.parametrize("ended", [True, False], ids=["ended", "begun"])
def test_what_other_workers_left_with_statistics_per_worker_is_not_taken(
    ended: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = trained(recipe(**OF_EACH), tmp_path)
    if not ended:
        left.folder.remove_outcome()
    monkeypatch.setattr(distributed, "size", lambda: 2)
    with pytest.raises(
        UserError,
        match=r"per_worker makes another training of 2 workers than of 1, which .* set resources.workers to 1",
    ):
        train(recipe(**OF_EACH), workspace(tmp_path))


def test_with_global_statistics_what_other_workers_left_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = trained(recipe(), tmp_path)
    monkeypatch.setattr(distributed, "size", lambda: 2)
    assert train(recipe(), workspace(tmp_path))["best"] == left.outcome["best"]
