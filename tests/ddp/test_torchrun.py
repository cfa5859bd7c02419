"""torchrun -m kdtrain: one process of it is python -m kdtrain, two train what one trains, and any may be killed."""

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from kills import (
    KILLABLE,
    PATIENCE_S,
    command,
    continue_to_the_end,
    kill_at_a_random_moment,
    leave_alone,
    require_equal,
    steps_saved,
    trial_of,
)
from trainings import KD, recipe, timeless, trained

from kdtrain.config.recipe import Recipe

pytestmark = pytest.mark.ddp

WORKERS = 2
STOPPED = "stopped; the same command continues from the newest checkpoint"


def launched(config: Recipe, folder: Path, *options: str, processes: int = WORKERS) -> subprocess.CompletedProcess[str]:
    started = command(config, folder, *options, processes=processes)
    return subprocess.run(started, capture_output=True, text=True, timeout=PATIENCE_S, env=environment())


def environment() -> dict[str, str]:
    """torchrun prints a banner where this is unset."""
    return {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def left_alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("left alone")
    leave_alone([case.config for case in KILLABLE.values()], folder, WORKERS)
    return folder


@pytest.mark.parametrize(
    ("name", "one_worker"),
    [("kd at an epoch's end", False), ("mgd in mid-epoch", True), ("discriminator in mid-epoch", False)],
    ids=["kd, all processes", "mgd, one worker", "discriminator, all processes"],
)
def test_processes_killed_at_a_random_moment_and_started_again_equal_those_left_alone(
    name: str, one_worker: bool, left_alone: Path, tmp_path: Path
) -> None:
    case = KILLABLE[name]
    killed = kill_at_a_random_moment(case, tmp_path, WORKERS, one_worker=one_worker)
    continue_to_the_end(case, tmp_path, WORKERS)
    ours = trial_of(case.config, tmp_path)
    assert ours.outcome()["workers"] == WORKERS
    require_equal(ours, trial_of(case.config, left_alone), killed)


def test_one_process_of_torchrun_equals_the_command_without_it_bit_for_bit(tmp_path: Path) -> None:
    config = recipe(**KD)
    done = launched(config, tmp_path, processes=1)
    assert (done.returncode, done.stderr) == (0, "")
    require_equal(trial_of(config, tmp_path), trained(config, tmp_path / "alone").folder, "not killed")


def test_two_processes_train_what_one_trains_and_only_one_of_them_prints(tmp_path: Path) -> None:
    config = recipe(**KD)
    done = launched(config, tmp_path, "--checkpoint-every-steps", "3")
    assert (done.returncode, done.stderr) == (0, "")
    first_words = [line.split()[0] for line in done.stdout.splitlines() if "nothing was learned" not in line]
    assert first_words == ["teacher:", "epoch", "epoch", "teacher:", "kd:", "epoch", "epoch", "kd:"]
    alone = trained(config, tmp_path / "alone")
    for ours, single in zip(trial_of(config, tmp_path).epochs(), alone.rows, strict=True):
        assert timeless(ours).keys() == single.keys()
        for key in ("train/loss", "train/kd", "val/nll", "val/teacher_accuracy"):
            assert ours[key] == pytest.approx(single[key], rel=1e-3), key


MISTAKES: dict[str, tuple[dict[str, Any], str, str, int]] = {
    "of the recipe, which all see": ({}, "student.model=lenet6", "--set student.model: unknown model 'lenet6'", 2),
    "of a folder, which the writing one sees": ({}, "seed=1", "{file}: cannot be written", 2),
    "none, but a training that fails": ({"optimizer": {"name": "sgd", "lr": 1e30}}, "seed=1", "none: failed: epoch", 1),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_printed_once_before_torchruns_own_summary(name: str, tmp_path: Path) -> None:
    changes, setting, sentence, exit_code = MISTAKES[name]
    (tmp_path / "file").touch()
    sentence = sentence.format(file=tmp_path / "file")
    options = ("--results", str(tmp_path / "file")) if "cannot be written" in sentence else ()
    done = launched(recipe(**changes), tmp_path, "--set", setting, *options)
    assert done.returncode == 1, "torchrun's own, whatever its processes say"
    before, _, summary = done.stderr.partition("Root Cause (first observed failure)")
    assert [line.startswith(sentence) for line in before.splitlines()].count(True) == 1, done.stderr
    assert f"exitcode  : {exit_code} " in done.stderr
    assert f"traceback : {sentence}" in summary, "the last lines say it too"
    assert "[rank" not in done.stderr, "no traceback of ours"


def test_help_and_unknown_options_are_printed_by_one_process(tmp_path: Path) -> None:
    done = launched(recipe(), tmp_path, "--reslts", "x")
    assert done.stderr.count("unrecognized arguments: --reslts x") == 1


def test_ctrl_c_ends_all_processes_with_one_sentence(tmp_path: Path) -> None:
    case = KILLABLE["kd at an epoch's end"]
    process = subprocess.Popen(
        command(case.config, tmp_path, processes=WORKERS), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + PATIENCE_S
    while not steps_saved(trial_of(case.config, tmp_path)):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE_S)
    assert err.splitlines().count(STOPPED) == 1, err
    assert "[rank" not in err
