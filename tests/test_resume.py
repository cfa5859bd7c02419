"""Killed and continued equals uninterrupted, bit for bit."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from trainings import CPU, KD, NO_DATA, equal_weights, recipe, timeless, trained

from kdtrain.config.recipe import Recipe
from kdtrain.identity import trial_id
from kdtrain.loop import Metrics
from kdtrain.run import train
from kdtrain.store import Row, Store

EPOCHS = 4
EPOCHS_TO_KILL = 25
RECIPES: dict[str, dict[str, Any]] = {
    "sgd": {"optimizer": {"name": "sgd", "lr": 0.05}},
    "momentum": {"optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 0.001}},
    "adam": {"optimizer": {"name": "adam", "lr": 0.002}},
    "adamw": {"optimizer": {"name": "adamw", "lr": 0.002, "weight_decay": 0.1}},
    "cosine": {"lr_schedule": {"name": "cosine", "warmup_epochs": 1}},
    "kd": KD,
    "bf16": {"precision": "bf16"},
}


def killed_after(epoch: int):
    """As a kill does it: no handler of ours sees it, nothing more is written."""

    def stop(metrics: Metrics) -> None:
        if metrics["epoch"] == epoch:
            raise KeyboardInterrupt

    return stop


def without_versions(outcome: Row) -> Row:
    return {key: value for key, value in timeless(outcome).items() if key != "schema"}


@pytest.mark.parametrize("name", RECIPES)
def test_interrupted_after_any_epoch_and_continued_equals_uninterrupted(name: str, tmp_path: Path) -> None:
    config = recipe(**RECIPES[name], epochs=EPOCHS)
    straight = trained(config, tmp_path / "straight")
    for epoch in range(1, EPOCHS + 1):
        results = tmp_path / f"cut {epoch}"
        with pytest.raises(KeyboardInterrupt):
            trained(config, results, on_epoch=killed_after(epoch))
        assert Store(results).trial(straight.folder.trial_id).outcome() is None
        continued = trained(config, results)
        assert continued.checkpoints == straight.checkpoints[epoch:]
        assert continued.rows == straight.rows
        assert equal_weights(continued.weights, straight.weights)
        assert without_versions(continued.outcome) == without_versions(straight.outcome)


def test_interrupted_after_every_epoch_equals_uninterrupted(tmp_path: Path) -> None:
    config = recipe(**KD, epochs=EPOCHS)
    straight = trained(config, tmp_path / "straight")
    for epoch in range(1, EPOCHS + 1):
        with pytest.raises(KeyboardInterrupt):
            trained(config, tmp_path / "cut", on_epoch=killed_after(epoch))
    continued = trained(config, tmp_path / "cut")
    assert continued.checkpoints == []
    assert continued.rows == straight.rows
    assert equal_weights(continued.weights, straight.weights)


def test_a_full_disk_or_a_closed_pipe_is_no_outcome_of_the_recipe(tmp_path: Path) -> None:
    config = recipe(epochs=EPOCHS)
    straight = trained(config, tmp_path / "straight")

    def closed(metrics: Metrics) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        trained(config, tmp_path / "cut", on_epoch=closed)
    assert Store(tmp_path / "cut").trial(straight.folder.trial_id).outcome() is None
    assert trained(config, tmp_path / "cut").rows == straight.rows


def cut_after(config: Recipe, results: Path, epoch: int) -> Path:
    """The folder of a training that was cut off after an epoch."""
    with pytest.raises(KeyboardInterrupt):
        trained(config, results, on_epoch=killed_after(epoch))
    return Store(results).trial(trial_id(config, NO_DATA)).path


@pytest.mark.parametrize("torn", [b'{"epoch": 3, "step": 12}\n', b'{"epoch": 3, "st', b"\n"])
def test_a_row_without_its_checkpoint_whole_or_torn_is_written_again(tmp_path: Path, torn: bytes) -> None:
    config = recipe(epochs=EPOCHS)
    straight = trained(config, tmp_path / "straight")
    rows = cut_after(config, tmp_path / "cut", 2) / "epochs.jsonl"
    rows.write_bytes(rows.read_bytes() + torn)
    continued = trained(config, tmp_path / "cut")
    assert continued.rows == straight.rows
    assert continued.checkpoints == straight.checkpoints[2:]


@pytest.mark.parametrize("damaged", [1, 2])
def test_with_damaged_checkpoints_a_training_goes_back_as_far_as_it_must(tmp_path: Path, damaged: int) -> None:
    config = recipe(epochs=EPOCHS)
    straight = trained(config, tmp_path / "straight")
    folder = cut_after(config, tmp_path / "cut", 3)
    for checkpoint in sorted(folder.glob("checkpoint-*"))[-damaged:]:
        checkpoint.write_bytes(checkpoint.read_bytes()[:-1])
    continued = trained(config, tmp_path / "cut")
    assert continued.checkpoints == straight.checkpoints[3 - damaged if damaged == 1 else 0 :]
    assert continued.rows == straight.rows


def test_a_pruned_trial_is_no_end_for_a_study_that_wants_it_whole(tmp_path: Path) -> None:
    config = recipe(epochs=EPOCHS)
    straight = trained(config, tmp_path / "straight")
    cut_after(config, tmp_path / "cut", 2)
    folder = Store(tmp_path / "cut").trial(straight.folder.trial_id)
    folder.write_outcome({"state": "pruned", "reason": "at epoch 2", "test": None})
    continued = trained(config, tmp_path / "cut")
    assert continued.outcome["state"] == "complete"
    assert continued.rows == straight.rows
    assert equal_weights(continued.weights, straight.weights)


def command(config: Recipe, folder: Path) -> list[str]:
    """python -m kdtrain on a recipe: JSON is YAML."""
    file = folder / "recipe.yaml"
    file.write_text(json.dumps(config.model_dump(mode="json", exclude_none=True)))
    return [sys.executable, "-m", "kdtrain", str(file), "--results", str(folder / "results"), "--device", "cpu"]


@pytest.mark.slow
def test_a_process_killed_at_a_random_moment_and_started_again_equals_one_left_alone(tmp_path: Path) -> None:
    config = recipe(data={"name": "digits", "resolution": 32}, epochs=EPOCHS_TO_KILL, **KD)
    run_again = command(config, tmp_path)
    rows = Store(tmp_path / "results").trial(trial_id(config, NO_DATA)).path / "epochs.jsonl"
    process = subprocess.Popen(run_again, stdout=subprocess.DEVNULL)
    epoch, moment_s = random.randint(1, EPOCHS_TO_KILL - 5), random.uniform(0, 0.2)
    deadline = time.monotonic() + 240
    while not rows.exists() or rows.read_bytes().count(b"\n") < epoch:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(moment_s)
    os.kill(process.pid, signal.SIGKILL)
    killed = f"killed {moment_s} s after epoch {epoch}"
    assert process.wait() == -signal.SIGKILL, killed
    subprocess.run(run_again, stdout=subprocess.DEVNULL, check=True, timeout=240)
    left_alone = trained(config, tmp_path / "left alone")
    continued = Store(tmp_path / "results").trial(left_alone.folder.trial_id)
    assert [timeless(row) for row in continued.epochs()] == left_alone.rows, killed
    assert continued.weights.read_bytes() == left_alone.folder.weights.read_bytes()
    assert continued.predictions.read_bytes() == left_alone.folder.predictions.read_bytes()
    assert without_versions(continued.outcome()) == without_versions(left_alone.outcome)


@pytest.mark.slow
def test_a_second_training_in_a_warm_process_equals_one_in_a_fresh_process(tmp_path: Path) -> None:
    config = recipe(**KD, epochs=3)
    trained(recipe(seed=7, precision="bf16"), tmp_path / "warm")
    warm = trained(config, tmp_path / "warm")
    subprocess.run(command(config, tmp_path), stdout=subprocess.DEVNULL, check=True, timeout=240)
    fresh = Store(tmp_path / "results").trial(warm.folder.trial_id)
    assert [timeless(row) for row in fresh.epochs()] == warm.rows
    assert fresh.weights.read_bytes() == warm.folder.weights.read_bytes()
    assert fresh.predictions.read_bytes() == warm.folder.predictions.read_bytes()
    assert train(config, Store(tmp_path / "results"), NO_DATA, CPU, final=True) == fresh.outcome()
