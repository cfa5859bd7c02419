"""Killed and continued equals uninterrupted, bit for bit: with every kind of state that a training carries."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
from kills import KILLABLE, command, continue_to_the_end, kill_at_a_random_moment, require_equal, trial_of
from runs import BATCH_NORM_STUDENT, fitted, fresh_state
from test_loop import OVERFITTING
from trainings import KD, NO_DATA, Trained, equal_weights, measured, recipe, timeless, trained, with_teacher, workspace

from kdtrain.config.recipe import Recipe
from kdtrain.storage.cache import Cache
from kdtrain.storage.folder import Folder
from kdtrain.training import trainer
from kdtrain.training.epoch_metrics import Metrics
from kdtrain.training.trainer import train
from kdtrain.trials.identity import trial_id
from kdtrain.trials.store import Store, TrialFolder
from kdtrain.trials.workspace import Workspace

STEPS_PER_EPOCH = 4
CRITIC = {"name": "logits_discriminator", "temperature": 1.5, "balance": {"alpha": 0.5}}
MGD = {"name": "mgd", "balance": {"weight": 3.0}, "mask_ratio": 0.4, "alpha": 0.01}
EMA = {"ema": {"decay": 0.9, "ramp_updates": 3.0}}
ADAMW = {"name": "adamw", "lr": 0.002, "weight_decay": 0.1}
MLP = {"model": "mlp", "hidden": [20, 20], "max_norm": 0.5}
NORMED = BATCH_NORM_STUDENT | {"dropout": 0.3}


def critic(**other: Any) -> dict[str, Any]:
    """Return a distillation in which the turns change in the middle of an epoch."""
    return KD | {"method": CRITIC | {"critic_steps": 3, "student_steps": 2} | other}


RECIPES: dict[str, dict[str, Any]] = {
    "sgd": {"optimizer": {"name": "sgd", "lr": 0.05}},
    "momentum": {"optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 0.001}},
    "adam, cosine": {"optimizer": {"name": "adam", "lr": 0.002}, "lr_schedule": {"name": "cosine", "warmup_epochs": 1}},
    "bf16, adamw": {"precision": "bf16", "optimizer": ADAMW},
    "max-norm, dropout, ema": {"student": MLP | {"input_dropout": 0.2, "dropout": 0.5}} | EMA,
    "mixup as published": {"mixup": {"convention": "published"}},
    "kd": KD,
    "fp16": KD | {"precision": "fp16", "optimizer": {"name": "adam", "lr": 0.002}},
    "ema": KD | EMA,
    "r_drop, ema": {"student": NORMED, "r_drop": {"weight": 0.3}} | EMA,
    "mgd": KD | {"method": MGD | {"stage": "4"}, "optimizer": ADAMW},
    "mgd, r_drop": {"teacher": BATCH_NORM_STUDENT, "method": MGD, "student": NORMED, "r_drop": {"weight": 0.3}},
    "dropout, batch normalisation, mixup": KD | {"student": NORMED, "mixup": {}},
    "frozen": KD | {"student": NORMED | {"freeze": "encoder_but_norm", "allow_random_frozen": True}},
    "critic": critic(),
    "critic, batch normalisation": critic() | {"student": BATCH_NORM_STUDENT},
    "critic restarted": critic(restart="epoch"),
    "critic clipped, bf16": critic(critic_training={"lipschitz": {"name": "clipping", "bound": 0.01}})
    | {"precision": "bf16"},
    "critic as published": critic(convention="published"),
    "critic, ema, mixup": critic() | EMA | {"mixup": {}},
    "early stopping": OVERFITTING | {"early_stopping": {"patience_epochs": 2}},
}


def three_epochs(name: str) -> Recipe:
    return recipe(**{"epochs": 3} | RECIPES[name])


def killed_after(epoch: int) -> Callable[[Metrics], None]:
    """Return an `on_epoch` that ends as a kill does: no handler of ours sees it, nothing more is written."""

    def stop(metrics: Metrics) -> None:
        if metrics["epoch"] == epoch:
            raise KeyboardInterrupt

    return stop


def cut_after(config: Recipe, results: Path, epoch: int) -> TrialFolder:
    """Cut a training off after an epoch and return its folder."""
    with pytest.raises(KeyboardInterrupt):
        trained(config, results, on_epoch=killed_after(epoch))
    folder = Store(results).trial(trial_id(config, NO_DATA))
    assert folder.outcome() is None
    return folder


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


def cut_in_mid_epoch(config: Recipe, results: Path, checkpoints: int) -> TrialFolder:
    """Cut a training off after so many checkpoints, one after each step, and return its folder."""
    with_teacher(config, results)
    with pytest.raises(KeyboardInterrupt):
        train(config, Workspace(CutStore(results, checkpoints), NO_DATA), final=True, checkpoint_every_steps=1)
    return Store(results).trial(trial_id(config, NO_DATA))


def require_continued(config: Recipe, results: Path, *, done: int | None = None) -> Trained:
    """Continue a training that was cut off after `done` epochs (None: of no interest) and require its usual end."""
    straight = trained(config)
    continued = trained(config, results)
    assert continued.rows == straight.rows
    assert equal_weights(continued.weights, straight.weights)
    ours, theirs = (
        timeless(measured(each.outcome) | {"git_commit": None, "git_dirty": None}) for each in (continued, straight)
    )
    assert ours == theirs
    assert done is None or continued.checkpoints == straight.checkpoints[done:]
    return continued


@pytest.mark.parametrize("name", RECIPES)
def test_cut_off_after_an_epoch_and_continued_equals_uninterrupted(name: str, tmp_path: Path) -> None:
    config = three_epochs(name)
    last = trained(config).outcome["epochs"]
    for epoch in range(last - 2, last + 1):
        cut_after(config, tmp_path / str(epoch), epoch)
        require_continued(config, tmp_path / str(epoch), done=epoch)


@pytest.mark.parametrize("name", [name for name in RECIPES if name != "early stopping"])
def test_cut_off_in_mid_epoch_and_continued_equals_uninterrupted(name: str, tmp_path: Path) -> None:
    config = three_epochs(name)
    for checkpoints in (1, 3, 7):
        done = len(cut_in_mid_epoch(config, tmp_path / str(checkpoints), checkpoints).epochs())
        require_continued(config, tmp_path / str(checkpoints), done=done)


def test_cut_off_again_and_again_equals_uninterrupted(tmp_path: Path) -> None:
    config = three_epochs("critic")
    for _ in range(2 * STEPS_PER_EPOCH):
        cut_in_mid_epoch(config, tmp_path, 1)
    cut_after(config, tmp_path, 3)
    assert require_continued(config, tmp_path).checkpoints == []


def test_what_was_computed_before_a_cut_in_mid_epoch_is_counted(tmp_path: Path) -> None:
    config = recipe(**KD)
    cut_in_mid_epoch(config, tmp_path, 2)
    continued, straight = require_continued(config, tmp_path).outcome, trained(config).outcome
    assert continued["teacher_images_computed"] == straight["teacher_images_computed"] > 0
    assert continued["teacher_images"] == straight["teacher_images"]


@pytest.fixture
def large_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each checkpoint take too long to be written after an epoch."""
    monkeypatch.setattr(trainer, "SMALL_CHECKPOINT_BYTES", 0)
    monkeypatch.setattr(trainer, "CHECKPOINT_BYTES_PER_S", 1.0)


@pytest.mark.usefixtures("large_checkpoints")
def test_what_was_computed_in_epochs_that_are_done_again_is_counted(tmp_path: Path) -> None:
    """They find the outputs in the cache: without the records of the first time nobody would have computed them."""
    config = three_epochs("kd")
    straight = trained(config, tmp_path / "straight", cache=Cache(tmp_path / "other cache", 1 << 30)).outcome
    with_teacher(config, tmp_path / "cut")
    place = workspace(tmp_path / "cut", cache=Cache(tmp_path / "cache", 1 << 30))
    for epoch in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            train(config, place, on_epoch=killed_after(epoch))
    continued = train(config, place, final=True)
    assert continued["teacher_images_computed"] == straight["teacher_images_computed"] > 0
    assert continued["teacher_images"] == straight["teacher_images"]
    assert continued["teacher_images_checked"] == 3 * straight["teacher_images_checked"]


def test_checkpoints_in_mid_epoch_change_nothing(tmp_path: Path) -> None:
    often = trained(three_epochs("mgd"), tmp_path, checkpoint_every_steps=1)
    assert often.rows == trained(three_epochs("mgd")).rows


def test_a_full_disk_or_a_closed_pipe_is_no_outcome_of_the_recipe(tmp_path: Path) -> None:
    def closed(metrics: Metrics) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        trained(recipe(), tmp_path, on_epoch=closed)
    assert Store(tmp_path).trial(trial_id(recipe(), NO_DATA)).outcome() is None
    require_continued(recipe(), tmp_path)


@pytest.mark.parametrize("torn", [b'{"epoch": 3, "step": 12}\n', b'{"epoch": 3, "st', b"\n"])
def test_a_row_without_its_checkpoint_whole_or_torn_is_written_again(tmp_path: Path, torn: bytes) -> None:
    rows = cut_after(three_epochs("sgd"), tmp_path, 2).path / "epochs.jsonl"
    rows.write_bytes(rows.read_bytes() + torn)
    require_continued(three_epochs("sgd"), tmp_path, done=2)


def test_a_training_goes_on_from_the_checkpoint_before_a_damaged_one_and_keeps_no_damaged_one(tmp_path: Path) -> None:
    config = three_epochs("critic")
    folder = cut_in_mid_epoch(config, tmp_path, 3)
    newest = sorted(folder.path.glob("checkpoint-*"))[-1]
    newest.write_bytes(newest.read_bytes()[:-1])
    cut_in_mid_epoch(config, tmp_path, 1)  # the third step again
    kept = sorted(folder.path.glob("checkpoint-*"))
    assert [path.name.split("-")[1] for path in kept] == ["000000002", "000000003"]
    for path in kept:
        safetensors.torch.load_file(path)
    require_continued(config, tmp_path)


@pytest.mark.parametrize("damaged", [1, 2])
def test_with_damaged_checkpoints_a_training_goes_back_as_far_as_it_must(tmp_path: Path, damaged: int) -> None:
    folder = cut_after(three_epochs("sgd"), tmp_path, 3)
    for checkpoint in sorted(folder.path.glob("checkpoint-*"))[-damaged:]:
        checkpoint.write_bytes(checkpoint.read_bytes()[:-1])
    require_continued(three_epochs("sgd"), tmp_path, done={1: 2, 2: 0}[damaged])


def test_while_running_the_last_two_checkpoints_are_kept_and_in_them_the_best_weights(tmp_path: Path) -> None:
    """The best epoch has no file of its own: each checkpoint holds its weights, however long ago it was."""
    worse_and_worse = recipe(epochs=4, optimizer={"name": "adam", "lr": 0.2}, objective="val/nll")
    straight = trained(worse_and_worse)
    assert straight.outcome["best"]["epoch"] <= 2
    folder = cut_after(worse_and_worse, tmp_path, 4)
    checkpoints = list(folder.path.glob("checkpoint-*"))
    assert len(checkpoints) == 2
    for path in checkpoints:
        tensors = safetensors.torch.load_file(path)
        best = {name.removeprefix("best."): value for name, value in tensors.items() if name.startswith("best.")}
        assert equal_weights(best, straight.weights)


def test_a_large_checkpoint_waits_for_the_time_that_is_worth_its_writing() -> None:
    small, resnet50 = 8 << 20, 285_000_000
    assert trainer.is_due(small, seconds=0.0, writing_s=9.0)
    for checkpoint_bytes, wait_s, writing_s in ((small + 1, 4.0, 0.0), (resnet50, 114.0, 1.0), (resnet50, 600.0, 12.0)):
        assert not trainer.is_due(checkpoint_bytes, seconds=wait_s - 1, writing_s=writing_s)
        assert trainer.is_due(checkpoint_bytes, seconds=wait_s, writing_s=writing_s)


@pytest.mark.usefixtures("large_checkpoints")
@pytest.mark.parametrize(("every", "kept"), [(None, []), (1000, [STEPS_PER_EPOCH, 2 * STEPS_PER_EPOCH])])
def test_what_has_no_checkpoint_yet_begins_again_and_with_the_option_each_epoch_has_one(
    every: int | None, kept: list[int], tmp_path: Path
) -> None:
    config = three_epochs("sgd")
    with pytest.raises(KeyboardInterrupt):
        train(config, workspace(tmp_path), on_epoch=killed_after(2), checkpoint_every_steps=every)
    folder = Store(tmp_path).trial(trial_id(config, NO_DATA))
    assert [int(path.name.split("-")[1]) for path in sorted(folder.path.glob("checkpoint-*"))] == kept
    torn = folder.path / ".checkpoint-000000008-0123456789abcdef.safetensors.x1y2z3"
    torn.write_bytes(b"of a process that was killed while it wrote")
    train(config, workspace(tmp_path), final=True)
    assert not torn.exists()
    require_continued(config, tmp_path)


def test_the_bytes_of_a_checkpoint_are_known_before_it_is_made() -> None:
    state = fresh_state(recipe(**RECIPES["ema"]))
    fitted(state)
    made = state.checkpoint()
    assert len(made) - int.from_bytes(made[:8], "little") - 8 == state.checkpoint_bytes() > 0


def test_a_pruned_trial_is_no_end_for_a_study_that_wants_it_whole(tmp_path: Path) -> None:
    folder = cut_after(three_epochs("sgd"), tmp_path, 2)
    folder.write_outcome({"state": "pruned", "reason": "at epoch 2", "test": None})
    assert require_continued(three_epochs("sgd"), tmp_path, done=2).outcome["state"] == "complete"


@pytest.mark.slow
@pytest.mark.parametrize("name", KILLABLE)
def test_a_process_killed_at_a_random_moment_and_started_again_equals_one_left_alone(name: str, tmp_path: Path) -> None:
    case = KILLABLE[name]
    killed = kill_at_a_random_moment(case, tmp_path)
    continue_to_the_end(case, tmp_path)
    require_equal(trial_of(case.config, tmp_path), trained(case.config).folder, killed)


@pytest.mark.slow
def test_a_second_training_in_a_warm_process_equals_one_in_a_fresh_process(tmp_path: Path) -> None:
    trained(recipe(seed=7, precision="bf16"))
    warm = trained(recipe(**KD, epochs=3), tmp_path / "warm")
    subprocess.run(command(recipe(**KD, epochs=3), tmp_path), stdout=subprocess.DEVNULL, check=True, timeout=240)
    fresh = Store(tmp_path / "results").trial(warm.folder.trial_id)
    require_equal(fresh, warm.folder, "not killed")
    assert train(recipe(**KD, epochs=3), workspace(tmp_path / "results"), final=True) == fresh.outcome()
