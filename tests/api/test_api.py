"""The Python API: what the README's example does, what the import loads, and what a call leaves alone."""

import asyncio
import faulthandler
import gc
import logging
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import made_up_data
import pytest
import torch
import yaml
from studies import sweep_file
from trainings import KD, recipe, timeless

import kdtrain as kd
from kdtrain.cli.main import main as command

SMALL = {
    "trials": 3,
    "pruner": None,
    "published": None,
    "select": {"candidates": 2},
    "confirm": {"seeds": 2},
}

OURS = ("RAY", "TUNE", "GLIBC", "PYTHON", "KDTRAIN", "OMP", "CUDA")
"""Environment variables that a run sets; OpenCV and threadpoolctl set others when they are imported."""


def process_settings() -> dict[str, Any]:
    """What a library call must leave as it was."""
    return {
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)],
        "descriptors": [os.readlink(f"/proc/self/fd/{number}") for number in (0, 1, 2)],
        "gc": (gc.isenabled(), gc.get_threshold(), gc.get_freeze_count()),
        "logging": (logging.getLogger().level, list(logging.getLogger().handlers)),
        "faults": faulthandler.is_enabled(),
        "environment": {name: value for name, value in os.environ.items() if name.startswith(OURS)},
        "folder": os.getcwd(),
        "first of sys.path": sys.path[0],
        "excepthook": sys.excepthook,
        "random": random.getstate(),
        "threads": torch.get_num_threads(),
        "precision": (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32),
    }


def test_the_import_loads_neither_torch_nor_ray_and_takes_a_fifth_of_a_second() -> None:
    code = "import sys, time; began = time.perf_counter(); import kdtrain; took = time.perf_counter() - began\n"
    code += "assert took < 0.2, took\nassert set(kdtrain.__all__) <= set(dir(kdtrain))\n"
    code += "kdtrain.UserError, kdtrain.NoResult, kdtrain.open_study\n"
    code += "assert not {'torch', 'ray', 'optuna'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_every_name_has_a_docstring_and_an_unknown_one_is_an_attribute_error() -> None:
    for name in kd.__all__:
        assert (getattr(kd, name).__doc__ or "").strip(), name
    with pytest.raises(AttributeError, match="run_swep"):
        kd.run_swep  # noqa: B018


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> kd.StudyResult:
    """The issue's example, in a thread beside a running event loop, as a notebook calls it."""
    folder = tmp_path_factory.mktemp("api")
    before = process_settings()

    async def in_a_notebook() -> kd.StudyResult:
        sweep = kd.load_sweep(sweep_file(folder, study=SMALL), overrides=["study.trials=2"])
        return kd.run_sweep(sweep, results=folder / "results", executor="local")

    found: list[kd.StudyResult] = []
    thread = threading.Thread(target=lambda: found.append(asyncio.run(in_a_notebook())))
    thread.start()
    thread.join()
    assert process_settings() == before
    return found[0]


def test_a_sweep_runs_in_this_process_to_its_winner_and_report(study: kd.StudyResult) -> None:
    assert study.finished
    assert study.report.read_text().startswith("# small")
    comparison = study.comparison
    assert comparison.seeds == 2
    tests = study.trials[study.trials["stage"] == "confirm"].pivot_table("test/accuracy", "seed", "candidate")
    assert comparison.difference == pytest.approx((tests["best"] - tests["baseline 1"]).mean())
    if comparison.interval is not None:
        assert sum(comparison.interval) / 2 == pytest.approx(comparison.difference)
    assert {"recipe.optimizer.lr", "val/accuracy", "state", "trial_id"} <= set(study.trials.columns)
    winner = study.winner
    assert winner.recipe.optimizer.lr == winner.values["optimizer.lr"]
    assert winner.recipe is winner.recipe, "read once"
    assert winner.trial_id in set(study.trials["trial_id"])


def test_running_again_trains_nothing_and_opening_reads_the_same(study: kd.StudyResult) -> None:
    rows = {path: path.stat().st_mtime_ns for path in study.folder.parent.glob("trials/*/epochs.jsonl")}
    written = yaml.safe_load((study.folder.parent.parent / "small.yaml").read_text())
    sweep = kd.Sweep.from_dict(written, name="small", overrides=["study.trials=2"])
    again = kd.run_sweep(sweep, results=study.folder.parent, executor="local")
    assert rows == {path: path.stat().st_mtime_ns for path in rows}
    opened = kd.open_study(study.folder)
    assert opened == again == study
    assert opened.trials.equals(study.trials)


def test_a_finished_sweep_that_is_run_again_starts_no_ray_and_takes_3_cpu_seconds_at_most(
    study: kd.StudyResult,
) -> None:
    """Beside the imports. Its report is left as it is, and written again if something has happened."""
    code = (
        "import sys, time, kdtrain.api.sweeps\n"
        "from kdtrain.cli.sweep import main\n"
        "started = time.process_time()\n"
        "assert main(sys.argv[1:]) == 0\n"
        "assert time.process_time() - started <= 3.0\n"
        "assert not {'ray', 'matplotlib'} & set(sys.modules)\n"
    )
    file = study.folder.parent.parent / "small.yaml"
    words = [str(file), "--set", "study.trials=2", "--results", str(study.folder.parent)]
    kd.run_sweep(kd.load_sweep(file, ["study.trials=2"]), results=study.folder.parent, executor="local")
    before = study.report.stat()
    subprocess.run([sys.executable, "-c", code, *words], check=True, timeout=120)
    assert study.report.stat() == before
    sweep = kd.load_sweep(file, overrides=["study.trials=2", "report.title=renamed"])
    again = kd.run_sweep(sweep, results=study.folder.parent, executor="local")
    assert again.report.read_text().startswith("# renamed")


def test_a_study_is_opened_without_torch_or_ray_and_nothing_is_written(study: kd.StudyResult) -> None:
    before = {path: path.stat().st_mtime_ns for path in study.folder.rglob("*")}
    code = "import sys, kdtrain; study = kdtrain.open_study(sys.argv[1])\n"
    code += "study.comparison.difference, study.winner.values, study.trials, study.report\n"
    code += "assert not {'torch', 'ray'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, str(study.folder)], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert before == {path: path.stat().st_mtime_ns for path in study.folder.rglob("*")}


def test_a_recipe_is_trained_after_its_teacher(study: kd.StudyResult, tmp_path: Path) -> None:
    rows: list[dict[str, float]] = []
    before = process_settings()
    winner = kd.load_recipe(study.folder / "best.yaml", overrides=["epochs=2"])
    outcome = kd.train(winner, results=tmp_path, device="cpu", on_epoch=rows.append)
    assert process_settings() == before
    assert outcome["state"] == "complete"
    assert [row["epoch"] for row in rows] == [1, 2, 1, 2]
    assert 0 <= outcome["test"]["test/accuracy"] <= 1
    assert kd.train(winner, results=tmp_path, device="cpu") == outcome


def test_an_error_of_the_callback_is_raised_and_the_training_continues_afterwards(tmp_path: Path) -> None:
    config = recipe(seed=3)

    def typo(metrics: dict[str, float]) -> None:
        if metrics["epoch"] == 1:
            raise ValueError("typo")

    with pytest.raises(ValueError, match="typo"):
        kd.train(config, results=tmp_path / "cut", device="cpu", on_epoch=typo)
    rows: list[dict[str, float]] = []
    outcome = kd.train(config, results=tmp_path / "cut", device="cpu", on_epoch=rows.append)
    assert [row["epoch"] for row in rows] == [2], "epoch 1 was kept"
    assert timeless(outcome) == timeless(kd.train(config, results=tmp_path / "whole", device="cpu"))


def test_two_threads_train_one_after_the_other_and_leave_the_callers_generator_as_it_was(tmp_path: Path) -> None:
    recipes = [recipe(**KD, seed=seed) for seed in (1, 2)]
    alone = [timeless(kd.train(each, results=tmp_path / "alone", device="cpu")) for each in recipes]
    torch.manual_seed(5)
    before = torch.get_rng_state()
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(lambda each: kd.train(each, results=tmp_path / "threads", device="cpu"), recipes))
    assert [timeless(each) for each in done] == alone
    assert torch.equal(torch.get_rng_state(), before)


def test_mistakes_are_user_errors_with_place_and_value(study: kd.StudyResult, tmp_path: Path) -> None:
    sweep = kd.load_sweep(sweep_file(tmp_path))
    with pytest.raises(kd.UserError, match="executor: must be ray or local, got 'slurm'"):
        kd.run_sweep(sweep, results=tmp_path / "results", executor="slurm")  # type: ignore[arg-type]
    with pytest.raises(kd.UserError, match="address: needs the executor ray"):
        kd.run_sweep(sweep, results=tmp_path / "results", executor="local", address="auto")
    with pytest.raises(kd.UserError, match=r"sweep: must be a Sweep, .* got str"):
        kd.run_sweep("sweeps/digits_kd.yaml", results=tmp_path / "results")  # type: ignore[arg-type]
    with pytest.raises(kd.UserError, match=r"recipe: must be a Recipe, .* got dict"):
        kd.train({}, results=tmp_path / "results")  # type: ignore[arg-type]
    with pytest.raises(kd.UserError, match=r"^results: must name a folder or a URL"):
        kd.run_sweep(sweep, results="", executor="local")
    two = kd.load_sweep(sweep_file(tmp_path, resources={"workers": 2}))
    with pytest.raises(kd.UserError, match=r"resources\.workers: must be 1"):
        kd.run_sweep(two, results=tmp_path / "results", executor="local")
    assert not (tmp_path / "results").exists()
    other = kd.load_sweep(sweep_file(tmp_path, recipe={"batch_size": 8}))
    with pytest.raises(kd.UserError, match="holds another study of this name"):
        kd.run_sweep(other, results=study.folder.parent, executor="local")
    with pytest.raises(kd.UserError, match="no such folder"):
        kd.open_study(tmp_path / "absent")
    with pytest.raises(kd.UserError, match="device: toaster"):
        kd.train(study.winner.recipe, results=tmp_path, device="toaster")


def test_a_study_without_a_winner_says_so(study: kd.StudyResult, tmp_path: Path) -> None:
    folder = tmp_path / "results" / "small"
    folder.mkdir(parents=True)
    (folder / "study.json").write_bytes((study.folder / "study.json").read_bytes())
    begun = kd.open_study(folder)
    assert not begun.finished
    for name in ("winner", "comparison"):
        with pytest.raises(kd.UserError, match="again to continue"):
            getattr(begun, name)


def test_the_report_names_commands_that_repeat_winner_and_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are carried out as they are printed: the images are below a folder that only KDTRAIN_DATA has named."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KDTRAIN_DATA", "~/all data")
    monkeypatch.setenv("HOME", str(tmp_path))
    made_up_data.paint_classes(tmp_path / "all data" / "pets")
    data = {"name": "image_folder", "folder": "pets", "resolution": 16}
    file = sweep_file(tmp_path, name="my_pets", recipe={"data": data, "epochs": 1}, study=SMALL)
    changes = ["study.trials=2", "recipe.teacher.epochs=1"]
    study = kd.run_sweep(kd.load_sweep(file, changes, seed=3), results="~/some results", executor="local")
    assert study.folder == tmp_path / "some results" / "my_pets"
    monkeypatch.delenv("KDTRAIN_DATA")
    shell, python = re.findall(r"```(?:sh|python)\n(.+)\n```", study.report.read_text().partition("## To repeat it")[2])
    before = {path: path.stat().st_mtime_ns for path in study.folder.parent.glob("trials/*/epochs.jsonl")}
    assert eval(python, {"kdtrain": kd}) == study
    assert before == {path: path.stat().st_mtime_ns for path in study.folder.parent.glob("trials/*/epochs.jsonl")}
    monkeypatch.setattr("sys.argv", ["kdtrain"])
    assert shlex.split(shell)[0] == "kdtrain"
    assert command(shlex.split(shell)[1:]) == 0
    assert (tmp_path / "repeat" / "trials" / study.winner.trial_id / "outcome.json").exists()


def test_messages_name_arguments_in_python_and_options_on_the_command_line(tmp_path: Path) -> None:
    with pytest.raises(kd.UserError, match=r"^results: ~nobody-of-this-name/x is no path"):
        kd.train(recipe(), results="~nobody-of-this-name/x", device="cpu")
    with pytest.raises(kd.UserError, match=r"^device: toaster cannot be used"):
        kd.train(recipe(), results=tmp_path, device="toaster")
    with pytest.raises(kd.UserError, match=r"^data: must name a folder or a URL, got nothing"):
        kd.train(recipe(), results=tmp_path, device="cpu", data="")


def test_what_rays_import_changes_is_restored_around_a_sweep() -> None:
    """Without a Ray: the context restores what the import of Ray does, in a process of its own."""
    code = """
import os, random, sys
from kdtrain.api.training import process_kept
def settings():
    return os.environ.get("RAY_CLIENT_MODE"), sys.excepthook, random.getstate(), sys.path[:3]
before = settings()
with process_kept():
    import ray
    assert settings() != before
    folder = sys.path[0]
assert settings() == before
assert sys.path[-1] == folder, "Ray imports from there later"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.ray
def test_ray_gives_the_numbers_of_this_process_and_leaves_it_as_it_was(study: kd.StudyResult, tmp_path: Path) -> None:
    before = process_settings()
    sweep = kd.load_sweep(sweep_file(tmp_path, study=SMALL), overrides=["study.trials=2"])
    started = time.monotonic()
    on_ray = kd.run_sweep(sweep, results=tmp_path / "results")
    assert process_settings() == before
    assert on_ray.comparison == study.comparison, f"after {time.monotonic() - started:.0f} s"
    assert on_ray.winner.values == study.winner.values
    measured = ["stage", "number", "trial_id", "state", "val/accuracy", "test/accuracy"]
    assert on_ray.trials[measured].equals(study.trials[measured])
