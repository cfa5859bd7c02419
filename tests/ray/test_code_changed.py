"""A method is edited while its sweep runs on a real Ray: no trial runs the new code under an old name."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_sweep import SWEEP, children

from kdtrain.storage.folder import read_rows
from kdtrain.trials.store import Store

pytestmark = pytest.mark.ray
ROOT = Path(__file__).parents[2]
TERM = "return temperature**2 * _kl(teacher_NK.detach(), student_NK, temperature)"


def planned(folder: Path) -> list[str]:
    """Return the trial ids of the search, in the order in which they were planned."""
    rows = read_rows(folder / "results" / "small" / "record.jsonl")
    return [row["trial_id"] for row in rows if row["event"] == "planned" and row["stage"] == "search"]


def started(folder: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "kdtrain", "sweep", "small.yaml", "--results", "results", *options]
    environment = os.environ | {"PYTHONPATH": str(folder)}
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def test_a_sweep_whose_method_is_edited_is_refused_and_started_again_trains_the_new_one(tmp_path: Path) -> None:
    for name in ("kdtrain", "analysis"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "small.yaml").write_text(SWEEP.replace("epochs: 6", "epochs: 60"))
    kd = tmp_path / "kdtrain" / "methods" / "kd.py"
    driver = started(tmp_path)
    try:
        deadline = time.monotonic() + 240
        while not planned(tmp_path):
            assert driver.poll() is None, driver.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert kd.read_text().count(TERM) == 1
        kd.write_text(kd.read_text().replace(TERM, TERM.replace("return", "return 100 *")))
        trials = [pid for pid, title in children(driver.pid).items() if "ImplicitFunc" in title]
        assert trials, children(driver.pid)
        for pid in trials:  # none is left that has read the old code, so the trials are tried again in new ones
            os.kill(pid, signal.SIGKILL)
        out, _ = driver.communicate(timeout=240)
    finally:
        driver.kill()
        driver.wait()
    assert driver.returncode == 2, out
    assert f"{kd}: the code of this method was changed while the sweep runs; start the sweep again" in out
    old = planned(tmp_path)
    before = {trial.trial_id for trial in Store(tmp_path / "results").trials()}
    again = started(tmp_path)
    try:
        deadline = time.monotonic() + 240
        while not set(planned(tmp_path)) - set(old):
            assert again.poll() is None, again.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        time.sleep(5.0)
        assert again.poll() is None, again.communicate()
    finally:
        again.send_signal(signal.SIGINT)
        again.communicate(timeout=60)
    assert not (set(planned(tmp_path)) - set(old)) & before
