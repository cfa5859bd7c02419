"""Trainings small enough for a test: digits at 16 pixels, a few images a class, a tenth of a second each."""

import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from kdtrain.config.needed_trainings import teacher_recipes
from kdtrain.config.recipe import Recipe
from kdtrain.methods.base import TeacherReading
from kdtrain.storage.cache import Cache
from kdtrain.storage.folder import Row
from kdtrain.training import trainer
from kdtrain.training.epoch_metrics import Metrics
from kdtrain.training.final_evaluation import read_test
from kdtrain.training.trainer import train
from kdtrain.trials.store import Store, TrialFolder
from kdtrain.trials.workspace import Workspace

CPU = torch.device("cpu")
NO_DATA = Path("the digits need no data folder")
TIMINGS = (
    "seconds",
    "images_per_s",
    "peak_memory_bytes",
    "teacher_images_computed",
    "teacher_images_checked",
    "teacher_seconds",
    "teacher_forward_seconds",
    "views_seconds",
)

ALONE: dict[str, Any] = {
    "data": {"name": "digits", "resolution": 16, "limit_per_class": 6},
    "student": {"model": "lenet5_student"},
    "method": {"name": "none"},
    "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9},
    "lr_schedule": {"name": "constant"},
    "batch_size": 16,
    "epochs": 2,
}
KD: dict[str, Any] = {
    "teacher": {"model": "lenet5_teacher", "epochs": 2},
    "method": {"name": "kd", "temperature": 4.0, "balance": {"alpha": 0.5}},
}


def workspace(results: Path, data_root: Path = NO_DATA, **options: Any) -> Workspace:
    """A store below `results`, on the CPU."""
    return Workspace(Store(results), data_root, **options)


def recipe(**changes: Any) -> Recipe:
    """The student alone, but for `changes` of whole top-level fields; `recipe(**KD)` distils."""
    return Recipe.model_validate(ALONE | changes)


@dataclass(frozen=True)
class Trained:
    """What a training left: its outcome, its rows, the kept weights, each epoch's checkpoint as bytes."""

    folder: TrialFolder
    outcome: Row
    checkpoints: list[bytes]

    @property
    def rows(self) -> list[Row]:
        """Without the timings: what must repeat."""
        return [timeless(row) for row in self.folder.epochs()]

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        """Of the best epoch."""
        return safetensors.torch.load_file(self.folder.weights)


@cache
def session_results() -> tempfile.TemporaryDirectory[str]:
    """Return a results folder of the whole test session."""
    return tempfile.TemporaryDirectory()


@cache
def _trained_once(recipe: Recipe, device: torch.device) -> Trained:
    return trained(recipe, Path(session_results().name) / device.type, device=device)


def with_teacher(recipe: Recipe, results: Path, data_root: Path = NO_DATA, device: torch.device = CPU) -> None:
    """Give a results folder the trained teachers of the recipe, which a session trains once."""
    for taught_by in teacher_recipes(recipe):
        if data_root != NO_DATA:
            train(taught_by, Workspace(Store(results), data_root, device), final=True)
            continue
        taught, own = trained(taught_by, device=device).folder, Store(results)
        if not own.trial(taught.trial_id).path.exists():
            shutil.copytree(taught.path, own.trial(taught.trial_id).path)


def trained(
    recipe: Recipe,
    results: Path | None = None,
    *,
    data_root: Path = NO_DATA,
    final: bool = True,
    on_epoch: Callable[[Metrics], None] = lambda metrics: None,
    cache: Cache | None = None,
    shared_readings: Sequence[TeacherReading] = (),
    device: torch.device = CPU,
    **options: Any,
) -> Trained:
    """Train the recipe after its teacher, as every command does.

    Without `results` each recipe is trained once in a test session: such a test only reads the folder. With `results`,
    a teacher of the same session is copied into the new folder.
    """
    if results is None:
        return _trained_once(recipe, device)
    place = Workspace(Store(results), data_root, device, cache)
    with_teacher(recipe, results, data_root, device)
    folder = place.trial(recipe)
    checkpoints: list[bytes] = []

    def keep(metrics: Metrics) -> None:
        checkpoint = folder.read_checkpoint()
        assert checkpoint is not None
        checkpoints.append(checkpoint)
        on_epoch(metrics)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "SMALL_CHECKPOINT_BYTES", 1 << 40)  # every epoch ends with a checkpoint of any size
        outcome = train(recipe, place, final=final, on_epoch=keep, shared_readings=shared_readings, **options)
    if final and outcome["state"] == "complete":
        outcome = read_test(recipe, place)
    return Trained(folder, outcome, checkpoints)


def timeless(row: Row) -> Row:
    return {key: value for key, value in row.items() if key not in TIMINGS}


def measured(outcome: Row) -> Row:
    """Return an outcome without what only the stored one has."""
    return {key: value for key, value in outcome.items() if key not in ("schema", "files", "digest")}


def equal_weights(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def strict_json(path: Path) -> Any:
    """Reads JSON as the standard has it: NaN and Infinity are refused."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{path} holds {constant}")

    return json.loads(path.read_text(), parse_constant=refuse)
