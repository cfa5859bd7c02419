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
from kdtrain.training.trainer import train

OF_EACH = {"batch_norm": "per_worker"}


@pytest.mark.parametrize(
    ("workers", "device", "batch_size", "changes", "sentence"),
    [
        (1, "cpu", 59, {}, "59 leaves 1 of 60 images .* the batch normalisation"),
        (3, "cpu", 59, {}, "59 leaves 1 of 60 images .* the batch normalisation"),
        (3, "cpu", 55, OF_EACH, "55 leaves 5 of 60 images for the last batch, shared by 3 work"),
        (3, "cuda", 58, {}, "58 leaves 2 of 60 images .* shared by 3 workers, but on a GPU"),
    ],
)
def test_a_last_batch_that_leaves_a_worker_without_statistics_is_refused(
    workers: int, device: str, batch_size: int, changes: dict[str, Any], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Globally two images are enough on a CPU, on GPUs one of each worker, and per worker two of each."""
    monkeypatch.setattr(distributed, "size", lambda: workers)
    config = recipe(student=BATCH_NORM_STUDENT, batch_size=batch_size, **changes)
    with pytest.raises(UserError, match=f"recipe.batch_size: {sentence}"):
        assemble(config, load(config.data, NO_DATA), (), torch.device(device))


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


@pytest.mark.parametrize("changes", [{}, {"student": BATCH_NORM_STUDENT | {"dropout": 0.5}}], ids=["", "dropout"])
def test_with_global_statistics_what_other_workers_left_is_taken(
    changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With dropout too, whose masks are another draw from the same distribution."""
    left = trained(recipe(**changes), tmp_path)
    monkeypatch.setattr(distributed, "size", lambda: 2)
    assert train(recipe(**changes), workspace(tmp_path))["best"] == left.outcome["best"]
