"""Killed and continued equals uninterrupted, bit for bit."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
from kills import KILLABLE, command, continue_to_the_end, kill_at_a_random_moment, require_equal, trial_of
from runs import fitted, fresh_run
from trainings import CPU, KD, NO_DATA, equal_weights, recipe, timeless, trained, workspace

from kdtrain.config.recipe import Recipe, teacher_recipe
from kdtrain.storage.cache import Cache
from kdtrain.storage.folder import Folder, Row
from kdtrain.training import trainer
from kdtrain.training.epoch_metrics import Metrics
from kdtrain.training.trainer import train
from kdtrain.trials.identity import trial_id
from kdtrain.trials.store import Store, TrialFolder
from kdtrain.trials.workspace import Workspace

EPOCHS = 3
STEPS_PER_EPOCH = 4
TEACHER = KD["teacher"]
CLIPPED = {"name": "clipping", "bound": 0.01}
CRITIC = {"name": "logits_discriminator", "temperature": 1.5, "balance": {"alpha": 0.5}}
RECIPES: dict[str, dict[str, Any]] = {
    "sgd": {"optimizer": {"name": "sgd", "lr": 0.05}},
    "momentum": {"optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 0.001}},
    "adam": {"optimizer": {"name": "adam", "lr": 0.002}},
    "adamw": {"optimizer": {"name": "adamw", "lr": 0.002, "weight_decay": 0.1}},
    "cosine": {"lr_schedule": {"name": "cosine", "warmup_epochs": 1}},
    "kd": KD,
    "bf16": {"precision": "bf16"},
    "fp16": KD | {"precision": "fp16", "optimizer": {"name": "adam", "lr": 0.002}},
    "ema": KD | {"ema": {"decay": 0.9, "ramp_updates": 3.0}},
    "mgd": {
        "teacher": TEACHER, "optimizer": {"name": "adamw", "lr": 0.002, "weight_decay": 0.1},
        "method": {"name": "mgd", "balance": {"weight": 3.0}, "stage": "4", "mask_ratio": 0.4, "alpha": 0.01},
    },
    # the turns change in the middle of an epoch
    "discriminator": {"teacher": TEACHER, "method": CRITIC | {"critic_steps": 3, "student_steps": 3}},
    "discriminator restarted": {
        "teacher": TEACHER,
        "method": CRITIC
        | {"critic_steps": 1, "student_steps": 2, "restart": "epoch", "critic_training": {"lipschitz": CLIPPED}},
    },
    "discriminator published": {
        "teacher": TEACHER, "method": CRITIC | {"convention": "published", "critic_steps": 1, "student_steps": 2},
    },
    "dropout, batch normalisation, mixup": KD
    | {"student": {"model": "test_resnet", "weights": None, "dropout": 0.3}, "mixup": {}},
}  # fmt: skip


def killed_after(epoch: int):
    """As a kill does it: no handler of ours sees it, nothing more is written."""

    def stop(metrics: Metrics) -> None:
        if metrics["epoch"] == epoch:
            raise KeyboardInterrupt

    return stop


class CutStore(Store):
    """A store whose process is interrupted right after it has written its n-th checkpoint."""

    def __init__(self, results: Path, checkpoints: int) -> None:
        super().__init__(results)
        self.left = checkpoints

    def trial(self, trial_id: str) -> TrialFolder:
        return CutFolder(super().trial(trial_id).files, self)


class CutFolder(TrialFolder):
    def __init__(self, files: Folder, store: CutStore) -> None:
        super().__init__(files, "a training")
        self.store = store

    def write_checkpoint(self, step: int, data: bytes) -> None:
        super().write_checkpoint(step, data)
        self.store.left -= 1
        if self.store.left == 0:
            raise KeyboardInterrupt


def cut_in_mid_epoch(config: Recipe, results: Path, checkpoints: int, every: int = 1) -> TrialFolder:
    """The folder of a training that was cut off after so many checkpoints."""
    taught_by = teacher_recipe(config)
    if taught_by is not None:
        train(taught_by, workspace(results), final=True)
    with pytest.raises(KeyboardInterrupt):
        train(config, Workspace(CutStore(results, checkpoints), NO_DATA), final=True, checkpoint_every_steps=every)
    return Store(results).trial(trial_id(config, NO_DATA))


def without_versions(outcome: Row) -> Row:
    return {key: value for key, value in timeless(outcome).items() if key not in ("schema", "git_commit")}


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


@pytest.mark.parametrize("name", RECIPES)
def test_interrupted_in_mid_epoch_and_continued_equals_uninterrupted(name: str, tmp_path: Path) -> None:
    config = recipe(**RECIPES[name])
    straight = trained(config, tmp_path / "straight")
    for checkpoints in (1, 3, 6):  # of steps, and at an epoch's end: 8 in all
        results = tmp_path / f"cut {checkpoints}"
        done = len(cut_in_mid_epoch(config, results, checkpoints).epochs())
        continued = trained(config, results)
        assert continued.checkpoints == straight.checkpoints[done:]
        assert continued.rows == straight.rows
        assert equal_weights(continued.weights, straight.weights)
        assert without_versions(continued.outcome) == without_versions(straight.outcome)


def test_what_was_computed_before_a_cut_in_mid_epoch_is_counted(tmp_path: Path) -> None:
    config = recipe(**KD)
    straight = trained(config, tmp_path / "straight").outcome
    cut_in_mid_epoch(config, tmp_path / "cut", 2)
    continued = trained(config, tmp_path / "cut").outcome
    assert continued["teacher_images_computed"] == straight["teacher_images_computed"] > 0
    assert continued["teacher_images"] == straight["teacher_images"]


def test_what_was_computed_in_epochs_that_are_done_again_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They find the answers in the cache: without the accounts of the first time nobody would have computed them."""
    config, kept = recipe(**KD, epochs=EPOCHS), Cache(tmp_path / "cache", 1 << 30)
    straight = trained(config, tmp_path / "straight", cache=Cache(tmp_path / "other cache", 1 << 30))
    monkeypatch.setattr(trainer, "SMALL_CHECKPOINT_BYTES", 0)
    monkeypatch.setattr(trainer, "CHECKPOINT_BYTES_PER_S", 1.0)
    store = Store(tmp_path / "cut")
    train(teacher_recipe(config), Workspace(store, NO_DATA, CPU), final=True)
    for epoch in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            train(config, Workspace(store, NO_DATA, CPU, kept), on_epoch=killed_after(epoch))
    continued = train(config, Workspace(store, NO_DATA, CPU, kept), final=True)
    assert continued["teacher_images_computed"] == straight.outcome["teacher_images_computed"] > 0
    assert continued["teacher_images"] == straight.outcome["teacher_images"]
    assert continued["teacher_images_checked"] == 3 * straight.outcome["teacher_images_checked"]


def test_interrupted_after_every_step_equals_uninterrupted(tmp_path: Path) -> None:
    config = recipe(**RECIPES["discriminator"])
    straight = trained(config, tmp_path / "straight")
    for _ in range(2 * STEPS_PER_EPOCH):
        cut_in_mid_epoch(config, tmp_path / "cut", 1)
    continued = trained(config, tmp_path / "cut")
    assert continued.checkpoints == []
    assert continued.rows == straight.rows
    assert equal_weights(continued.weights, straight.weights)


def test_checkpoints_in_mid_epoch_change_nothing(tmp_path: Path) -> None:
    config = recipe(**RECIPES["mgd"])
    straight = trained(config, tmp_path / "straight")
    store = Store(tmp_path / "often")
    train(teacher_recipe(config), Workspace(store, NO_DATA, CPU), final=True)
    train(config, Workspace(store, NO_DATA, CPU), final=True, checkpoint_every_steps=1)
    assert [timeless(row) for row in store.trial(straight.folder.trial_id).epochs()] == straight.rows


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


def flipped(place: float) -> Callable[[bytes], bytes]:
    """One bit of the byte at a share of the file: 0 is the header's length, then comes the header, then the tensors."""

    def flip(data: bytes) -> bytes:
        at = min(int(place * len(data)), len(data) - 1)
        return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]

    return flip


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    **{f"a bit at {place}": flipped(place) for place in (0, 0.01, 0.2, 0.5, 0.9, 1)},
    "nothing left": lambda data: b"",
    "one byte missing": lambda data: data[:-1],
    "half of it": lambda data: data[: len(data) // 2],
    "a byte more": lambda data: data + b"\0",
    "zeros": lambda data: bytes(len(data)),
}


def test_whatever_is_damaged_of_a_checkpoint_it_is_not_loaded_and_the_one_before_it_is(tmp_path: Path) -> None:
    folder = cut_in_mid_epoch(recipe(), tmp_path, 3)
    before, newest = sorted(folder.path.glob("checkpoint-*"))
    whole = newest.read_bytes()
    for name, damage in DAMAGES.items():
        assert folder.read_checkpoint() == whole
        newest.write_bytes(damage(whole))
        assert folder.read_checkpoint() == before.read_bytes(), name
        newest.write_bytes(whole)


def test_a_training_goes_on_from_the_checkpoint_before_a_damaged_one_and_keeps_no_damaged_one(tmp_path: Path) -> None:
    config = recipe(**RECIPES["discriminator"])
    straight = trained(config, tmp_path / "straight")
    folder = cut_in_mid_epoch(config, tmp_path / "cut", 3)
    newest = sorted(folder.path.glob("checkpoint-*"))[-1]
    newest.write_bytes(flipped(0.5)(newest.read_bytes()))
    cut_in_mid_epoch(config, tmp_path / "cut", 1)  # the third step again
    kept = sorted(path.name.split("-")[1] for path in folder.path.glob("checkpoint-*"))
    assert kept == ["000000002", "000000003"]
    for path in folder.path.glob("checkpoint-*"):
        safetensors.torch.load_file(path)
    continued = trained(config, tmp_path / "cut")
    assert continued.rows == straight.rows
    assert equal_weights(continued.weights, straight.weights)


def test_what_a_kill_left_of_a_checkpoint_being_written_is_not_loaded_and_removed(tmp_path: Path) -> None:
    config = recipe(epochs=EPOCHS)
    straight = trained(config, tmp_path / "straight")
    folder = cut_after(config, tmp_path / "cut", 2)
    torn = folder / ".checkpoint-000000012-0123456789abcdef.safetensors.x1y2z3"
    torn.write_bytes(straight.checkpoints[2][:-7])
    continued = trained(config, tmp_path / "cut")
    assert continued.checkpoints == straight.checkpoints[2:]
    assert continued.rows == straight.rows
    assert not torn.exists()


def test_while_running_the_last_two_checkpoints_are_kept_and_in_them_the_best_weights(tmp_path: Path) -> None:
    """The best epoch has no file of its own: each checkpoint holds its weights, however long ago it was."""
    worse_and_worse = recipe(epochs=4, optimizer={"name": "adam", "lr": 0.2}, objective="val/nll")
    straight = trained(worse_and_worse, tmp_path / "straight")
    assert straight.outcome["best"]["epoch"] <= 2
    counts = []
    folder = Store(tmp_path / "cut").trial(straight.folder.trial_id).path

    def look(metrics: Metrics) -> None:
        counts.append(len(list(folder.glob("checkpoint-*"))))
        if metrics["epoch"] == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(worse_and_worse, tmp_path / "cut", on_epoch=look)
    assert counts == [1, 2, 2, 2]
    for path in folder.glob("checkpoint-*"):
        tensors = safetensors.torch.load_file(path)
        best = {name.removeprefix("best."): value for name, value in tensors.items() if name.startswith("best.")}
        assert equal_weights(best, straight.weights)


def test_a_large_checkpoint_waits_for_the_time_that_is_worth_its_writing() -> None:
    small, resnet50 = 8 << 20, 285_000_000
    assert trainer.is_due(small, seconds=0.0, writing_s=9.0)
    assert not trainer.is_due(small + 1, seconds=3.0, writing_s=0.0)
    assert trainer.is_due(small + 1, seconds=4.0, writing_s=0.0)
    assert not trainer.is_due(resnet50, seconds=113.0, writing_s=1.0)
    assert trainer.is_due(resnet50, seconds=114.0, writing_s=1.0)
    assert not trainer.is_due(resnet50, seconds=599.0, writing_s=12.0)
    assert trainer.is_due(resnet50, seconds=600.0, writing_s=12.0)


@pytest.mark.parametrize(("every", "kept"), [(None, []), (1000, [STEPS_PER_EPOCH, 2 * STEPS_PER_EPOCH])])
def test_what_has_no_checkpoint_yet_begins_again_and_who_asks_has_one_after_every_epoch(
    every: int | None, kept: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = recipe(epochs=EPOCHS)
    straight = trained(config, tmp_path / "straight")
    monkeypatch.setattr(trainer, "SMALL_CHECKPOINT_BYTES", 0)
    monkeypatch.setattr(trainer, "CHECKPOINT_BYTES_PER_S", 1.0)
    with pytest.raises(KeyboardInterrupt):
        train(config, workspace(tmp_path / "cut"), on_epoch=killed_after(2), checkpoint_every_steps=every)
    folder = Store(tmp_path / "cut").trial(straight.folder.trial_id)
    assert [int(path.name.split("-")[1]) for path in sorted(folder.path.glob("checkpoint-*"))] == kept
    torn = folder.path / ".checkpoint-000000008-0123456789abcdef.safetensors.x1y2z3"
    torn.write_bytes(b"of a process that was killed while it wrote")
    train(config, workspace(tmp_path / "cut"), final=True)
    assert not torn.exists()
    assert [timeless(row) for row in folder.epochs()] == straight.rows
    assert equal_weights(safetensors.torch.load_file(folder.weights), straight.weights)


def test_the_bytes_of_a_checkpoint_are_known_before_it_is_made() -> None:
    run = fresh_run(recipe(**RECIPES["ema"]))
    fitted(run)
    made = run.checkpoint()
    assert len(made) - int.from_bytes(made[:8], "little") - 8 == run.checkpoint_bytes() > 0


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


@pytest.mark.slow
@pytest.mark.parametrize("name", KILLABLE)
def test_a_process_killed_at_a_random_moment_and_started_again_equals_one_left_alone(name: str, tmp_path: Path) -> None:
    case = KILLABLE[name]
    killed = kill_at_a_random_moment(case, tmp_path)
    continue_to_the_end(case, tmp_path)
    left_alone = trained(case.config, tmp_path / "left alone")
    require_equal(trial_of(case.config, tmp_path), left_alone.folder, killed)


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
    assert train(config, workspace(tmp_path / "results"), final=True) == fresh.outcome()
