"""Trainings by the command in real processes, which are killed at a random moment and started again."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from trainings import CPU, NO_DATA, recipe, timeless

from kdtrain.config.needed_trainings import teacher_recipe
from kdtrain.config.recipe import Recipe
from kdtrain.training.final_evaluation import read_test
from kdtrain.training.trainer import train
from kdtrain.trials.identity import trial_id
from kdtrain.trials.store import Store, TrialFolder
from kdtrain.trials.workspace import Workspace

PATIENCE_S = 300.0
WHOLE_DIGITS = {"name": "digits", "resolution": 16}  # 898 images to train on
TEACHER = {
    "model": "lenet5_teacher", "epochs": 1, "batch_size": 64,
    "optimizer": {"name": "adam", "lr": 0.01}, "lr_schedule": {"name": "constant"},
}  # fmt: skip


@dataclass(frozen=True)
class Killable:
    """A training that takes some seconds; `every` is the number of steps between checkpoints in mid-epoch."""

    config: Recipe
    every: int | None

    @property
    def steps(self) -> int:
        return -(-898 // self.config.batch_size) * self.config.epochs


def killable(every: int | None = None, **changes: Any) -> Killable:
    return Killable(recipe(data=WHOLE_DIGITS, teacher=TEACHER, **changes), every)


KILLABLE = {
    "kd at an epoch's end": killable(
        method={"name": "kd", "temperature": 4.0, "balance": {"alpha": 0.5}},
        lr_schedule={"name": "cosine", "warmup_epochs": 1}, ema={"decay": 0.99}, batch_size=15, epochs=12,
    ),
    "mgd in mid-epoch": killable(
        every=7, precision="fp16", optimizer={"name": "adamw", "lr": 0.002, "weight_decay": 0.1},
        method={"name": "mgd", "balance": {"weight": 3.0}, "stage": "4", "mask_ratio": 0.4, "alpha": 0.01},
        batch_size=5, epochs=3,
    ),
    "discriminator in mid-epoch": killable(
        every=11, optimizer={"name": "adam", "lr": 0.002},
        method={
            "name": "logits_discriminator", "temperature": 1.5, "balance": {"alpha": 0.5},
            "critic_steps": 30, "student_steps": 50,
        },
        batch_size=5, epochs=3,
    ),
}  # fmt: skip


def command(config: Recipe, folder: Path, *options: str, processes: int | None = None) -> list[str]:
    """Return the command that trains a recipe, with torchrun if `processes` is given. JSON is YAML, too."""
    file = folder / "recipe.yaml"
    file.write_text(json.dumps(config.model_dump(mode="json", exclude_none=True)))
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)] if processes else []
    module = ["-m", "kdtrain", str(file), "--results", str(folder / "results"), "--device", "cpu"]
    return [sys.executable, *launcher, *module, *options]


def trial_of(config: Recipe, folder: Path) -> TrialFolder:
    return Store(folder / "results").trial(trial_id(config, NO_DATA))


def steps_saved(folder: TrialFolder) -> int:
    """Return the step of the newest checkpoint, or 0."""
    return max((int(path.name.split("-")[1]) for path in folder.path.glob("checkpoint-*")), default=0)


def kill_at_a_random_moment(
    case: Killable, folder: Path, processes: int | None = None, *, one_worker: bool = False, latest: float = 0.75
) -> str:
    """Run the command, kill it and its workers, or one worker alone, with SIGKILL, and describe the moment.

    The kill comes after at most the share `latest` of all steps, plus the time that it takes.
    """
    seed = random.randrange(1_000_000)
    chance = random.Random(seed)
    step, moment_s = chance.randrange(int(case.steps * latest)), chance.uniform(0, 0.1)
    trial = trial_of(case.config, folder)
    options = ["--checkpoint-every-steps", str(case.every)] if case.every else []
    process = subprocess.Popen(
        command(case.config, folder, *options, processes=processes), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    try:
        deadline = time.monotonic() + PATIENCE_S
        while steps_saved(trial) <= step:
            if process.poll() is not None:
                raise AssertionError(f"the command ended by itself: {process.stderr.read().decode()}")
            assert time.monotonic() < deadline, f"no checkpoint after step {step}"
            time.sleep(0.005)
        time.sleep(moment_s)
        workers = children(process.pid) if processes else []
        assert len(workers) == (processes or 0)
        for pid in [chance.choice(workers)] if one_worker else [process.pid, *workers]:
            os.kill(pid, signal.SIGKILL)
        if one_worker:
            assert process.wait(timeout=PATIENCE_S) == 1, "torchrun ends when one of its processes has died"
        wait_for_end([process.pid, *workers], process)
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
    return f"seed {seed}: killed {moment_s:.3f} s after the checkpoint past step {step}, newest {steps_saved(trial)}"


def continue_to_the_end(case: Killable, folder: Path, processes: int | None = None) -> None:
    started = command(case.config, folder, processes=processes)
    subprocess.run(started, stdout=subprocess.DEVNULL, check=True, timeout=PATIENCE_S)


def leave_alone(configs: list[Recipe], folder: Path, workers: int) -> None:
    """Run all these trainings without a kill, in one group of workers."""
    folder.mkdir(exist_ok=True)
    torch.multiprocessing.spawn(_train_all, (configs, str(folder), workers), nprocs=workers)


def _train_all(rank: int, configs: list[Recipe], folder: str, workers: int) -> None:
    torch.set_num_threads(1)
    patience, meeting = timedelta(seconds=PATIENCE_S), f"file://{folder}/group"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=workers, timeout=patience)
    store = Store(Path(folder) / "results")
    for config in configs:
        for part in (teacher_recipe(config), config):
            if part is not None:
                train(part, Workspace(store, NO_DATA, CPU), final=True)
                read_test(part, Workspace(store, NO_DATA, CPU))
    dist.destroy_process_group()


def wait_for_end(pids: list[int], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while process.poll() is None or any(is_running(pid) for pid in pids):
        assert time.monotonic() < deadline, "the killed processes are still there"
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def children(pid: int) -> list[int]:
    """Return the child processes of a process."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    return [int(own) for own, parent in (line.split() for line in listed.splitlines()) if int(parent) == pid]


def require_equal(ours: TrialFolder, left_alone: TrialFolder, killed: str) -> None:
    """Check that all files of two trainings are equal bit for bit, except timings and the git commit."""
    assert [timeless(row) for row in ours.epochs()] == [timeless(row) for row in left_alone.epochs()], killed
    assert ours.weights.read_bytes() == left_alone.weights.read_bytes(), killed
    assert ours.predictions.read_bytes() == left_alone.predictions.read_bytes(), killed
    outcome, expected = ours.outcome(), left_alone.outcome()
    assert outcome is not None
    assert expected is not None
    assert timeless(outcome | {"git_commit": None, "git_dirty": None}) == timeless(
        expected | {"git_commit": None, "git_dirty": None}
    ), killed
