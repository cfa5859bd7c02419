"""A training of two workers on Ray Train whose numbers do not change when one is killed and replaced.

It was begun and killed under torchrun before, because Ray Train continues the same training.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from faults import faulty
from kills import KILLABLE, PATIENCE_S, kill_at_a_random_moment, leave_alone, steps_saved, trial_of
from test_sweep import children
from trainings import KD, NO_DATA, recipe, timeless, with_teacher

from kdtrain.config.needed_trainings import teacher_recipe
from kdtrain.config.recipe import Recipe
from kdtrain.config.study_settings import Resources
from kdtrain.storage.folder import read_rows

pytestmark = [pytest.mark.ray, pytest.mark.ddp]

SCRIPT = Path(__file__).parent / "one_trial.py"
WORKERS = 2


def workers_below(pid: int) -> list[int]:
    return [own for own, title in children(pid).items() if "RayTrainWorker" in title]


def job_of(config: Recipe, folder: Path, **options: Any) -> dict[str, Any]:
    """Return a final training as `run_job` takes it; the node is fit if there is a file scratch/mark."""
    return {
        "kind": "train", "key": "search-0", "needs": {"slot": 1.0}, "alone": False, "final": True, "also": [],
        "trial_id": trial_of(config, folder).trial_id, "recipe": config.model_dump(mode="json"), "sweep": "tested",
        "results": str(folder / "results"), "data": str(NO_DATA), "ray_storage": str(folder / "storage"),
        "scratch": str(folder / "scratch"), "mark": "mark", "readings": (), "code": {},
        "resources": Resources(workers=WORKERS, gpus_per_worker=0, teacher_cache="none", **options).model_dump(),
    }  # fmt: skip


@pytest.mark.parametrize("checkpoints", ["kept", "lost"])
def test_a_killed_worker_is_replaced_and_the_training_ends_with_the_numbers_of_an_undisturbed_one(
    checkpoints: str, tmp_path: Path
) -> None:
    """lost: epochs that Ray knows are trained again, as if large checkpoints are not written after each epoch."""
    case = KILLABLE["kd at an epoch's end"]
    config, undisturbed = case.config, tmp_path / "undisturbed"
    leave_alone([config], undisturbed, WORKERS)
    trial, taught_by = trial_of(config, tmp_path), teacher_recipe(config)
    shutil.copytree(trial_of(taught_by, undisturbed).path, trial_of(taught_by, tmp_path).path)
    begun = kill_at_a_random_moment(case, tmp_path, WORKERS, latest=0.3)  # Tune has not heard of these epochs
    (tmp_path / "scratch").mkdir()
    (tmp_path / "scratch" / "mark").touch()
    job = job_of(config, tmp_path, checkpoint_every_steps=17)
    (tmp_path / "job.json").write_text(json.dumps(job))
    seed = random.randrange(1_000_000)
    chance = random.Random(seed)
    step = chance.randrange(max(steps_saved(trial), case.steps // 4), case.steps * 3 // 4)
    arguments = [str(tmp_path / "job.json"), str(tmp_path / "rows.jsonl")]
    driver = subprocess.Popen([sys.executable, str(SCRIPT), *arguments], stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + PATIENCE_S
        while steps_saved(trial) <= step:
            assert driver.poll() is None, f"it ended by itself: {driver.communicate()}"
            assert time.monotonic() < deadline, f"no checkpoint after step {step}"
            time.sleep(0.01)
        workers = workers_below(driver.pid)
        assert len(workers) == WORKERS
        reached = len(trial.epochs())
        os.kill(chance.choice(workers), signal.SIGKILL)
        if checkpoints == "lost":
            time.sleep(1.0)  # the other one may be writing one
            trial.remove_checkpoints()
            while len(trial.epochs()) >= reached:  # until they are done again
                assert driver.poll() is None, f"it ended by itself: {driver.communicate()}"
                assert time.monotonic() < deadline, "nothing is done again"
                time.sleep(0.01)
        killed = f"{begun}; then on Ray, seed {seed}: killed after step {step}"
        _, err = driver.communicate(timeout=PATIENCE_S)
    finally:
        driver.kill()
        driver.wait()
        assert driver.stderr is not None
        driver.stderr.close()
    assert driver.returncode == 0, err
    expected = trial_of(config, undisturbed)
    assert [timeless(row) for row in trial.epochs()] == [timeless(row) for row in expected.epochs()], killed
    assert trial.weights.read_bytes() == expected.weights.read_bytes(), killed
    rows = read_rows(tmp_path / "rows.jsonl")
    (broken,) = [row["broken"] for row in rows if "broken" in row]
    assert "worker " in json.loads(broken)["reason"]
    reported = [row for row in rows if "broken" not in row]
    assert [row["epoch"] for row in reported] == list(range(1, config.epochs + 1)), killed
    assert [row["val/accuracy"] for row in reported] == [row["val/accuracy"] for row in trial.epochs()], killed
    assert len({row["checkpoint_path"] for row in reported}) == config.epochs, "each with a checkpoint of its own"


def test_two_workers_of_which_one_raises_leave_no_outcome_and_their_tracebacks(tmp_path: Path) -> None:
    config = recipe(**KD)
    with_teacher(config, tmp_path / "results")
    trial = trial_of(config, tmp_path)
    fault, environment = faulty(tmp_path)
    (tmp_path / "scratch").mkdir()
    (tmp_path / "scratch" / "mark").touch()
    job = job_of(config, tmp_path, retries=0)
    (tmp_path / "job.json").write_text(json.dumps(job))
    words = [sys.executable, str(SCRIPT), str(tmp_path / "job.json"), str(tmp_path / "rows.jsonl")]
    subprocess.run(words, check=True, timeout=PATIENCE_S, env=environment)
    broken = json.loads(read_rows(tmp_path / "rows.jsonl")[-1]["broken"])
    assert "worker 0: RuntimeError: the device was lost" in broken["reason"]
    assert "sitecustomize.py" in broken["traceback"]
    assert (broken["users"], trial.outcome()) == (False, None)
    assert len(trial.epochs()) == 1
    fault.unlink()
    subprocess.run(words, check=True, timeout=PATIENCE_S, env=environment)
    outcome = trial.outcome()
    assert outcome is not None
    assert (outcome["state"], outcome["epochs"], outcome["workers"]) == ("complete", 2, WORKERS)
