"""The shares of a machine that trials get, on a real Ray that is told of GPUs and limits which are not there."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from studies import events, open_study, sweep_file

from kdtrain.errors import UserError
from kdtrain.executors import ray_cluster, ray_tune

pytestmark = pytest.mark.ray
GIB = 1 << 30
OUT_OF_MEMORY = "search-1"


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = {"CPU": 4.0, "GPU": 2.0, "memory": 64.0 * GIB}
    monkeypatch.setattr(ray_cluster, "machine_resources", lambda resources: machine)


def recorder(folder: Path) -> Callable[[dict[str, Any]], None]:
    """A trainable that notes what each job got, and trains on the CPU; one trial runs out of a GPU's memory.

    The trials of the search wait for one another, so that all that can run at once do.
    """

    def run(config: dict[str, Any]) -> None:
        import json
        import os
        import time

        from ray import tune

        from kdtrain.executors.ray_worker import run_job

        if config["kind"] in ("warm", "idle"):
            run_job(config)
            return
        name = f"{config['key']}{'-alone' * config['alone']}"
        (folder / f"{name}.begun").touch()
        told: dict[str, Any] = {"broken": None, "unfit": False, "measured": None}
        shares = config["key"].startswith("search") and not config["alone"]
        deadline = time.monotonic() + 240  # processes start slowly on a busy machine
        while shares and len(list(folder.glob("search-*.begun"))) < 4 and time.monotonic() < deadline:
            time.sleep(0.05)
        if config["alone"]:
            time.sleep(1.0)  # another trial would begin meanwhile
        begun = {path.stem for path in folder.glob("*.begun")} - {path.stem for path in folder.glob("*.json")}
        about = {"gpu": os.environ.get("CUDA_VISIBLE_DEVICES"), "needs": config["needs"], "at_once": len(begun)}
        if config["kind"] == "smoke":
            told["measured"] = {
                "device": "made up",
                "process_bytes": 1,
                "gpu_bytes": 8 << 30,
                "gpu_total_bytes": 24 << 30,
            }
        elif config["key"] == OUT_OF_MEMORY and not config["alone"]:
            told["broken"] = {"reason": "out of memory", "traceback": "...", "out_of_memory": True}
        if shares:
            (folder / f"{name}.read").touch()
            while len(list(folder.glob("search-*.read"))) < 4 and time.monotonic() < deadline:
                time.sleep(0.05)
        if config["kind"] == "train" and told["broken"] is None:
            run_job({**config, "needs": {"CPU": 1}})
        (folder / f"{name}.json").write_text(json.dumps(about))
        if config["kind"] != "train" or told["broken"] is not None:
            tune.report({"epoch": 0, **{name: value and json.dumps(value) for name, value in told.items()}})

    return run


def test_trials_share_gpus_as_measured_and_one_that_runs_out_of_memory_runs_once_more_alone(
    tmp_path: Path, two_gpus: None
) -> None:
    """24 GiB for trials that need 1.25 * 8 + 1 = 11: two on each GPU."""
    confirm = {"seeds": 1, "published": False}
    options = {
        "trials": 4,
        "batch": 4,
        "published": None,
        "pruner": None,
        "select": {"candidates": 2},
        "confirm": confirm,
    }
    file = sweep_file(tmp_path, recipe={"epochs": 1}, study=options)
    study = open_study(file, tmp_path / "results")
    jobs = tmp_path / "jobs"
    jobs.mkdir()

    def stop_after_the_search() -> None:
        if study.stage in ("select", "confirm"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ray_tune.execute(study, check_interrupted=stop_after_the_search, trainable=recorder(jobs))

    found = {path.stem: json.loads(path.read_text()) for path in jobs.glob("*.json")}
    own = [about for name, about in found.items() if name.startswith(("smoke", "teacher")) or name.endswith("alone")]
    assert len(own) == 3
    assert all(about["needs"]["GPU"] == 1 and about["gpu"] in ("0", "1") for about in own)
    assert found[f"{OUT_OF_MEMORY}-alone"]["at_once"] == 1
    shared = [found[f"search-{number}"] for number in range(4)]
    assert all(about["needs"] == {"CPU": 1, "GPU": 0.5} for about in shared)
    assert [about["at_once"] for about in shared] == [4] * 4
    assert sorted(about["gpu"] for about in shared) == ["0", "0", "1", "1"]
    placed = [(row["trials_per_gpu"], row["trials_at_once"]) for row in events(study) if row["event"] == "placed"]
    assert placed == [(1, 2), (2, 4)]
    ends = {
        row["number"]: row["state"] for row in events(study) if row["event"] == "ended" and row["stage"] == "search"
    }
    assert ends == dict.fromkeys(range(4), "complete")


def test_the_memory_of_a_container_limits_the_trials_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has imported torch has about half a GB of its own."""
    machine = {"CPU": 2.0, "GPU": 0.0, "memory": 0.9e9}
    monkeypatch.setattr(ray_cluster, "machine_resources", lambda resources: machine)
    study = open_study(sweep_file(tmp_path), tmp_path / "results")

    def stop_after_the_baselines() -> None:
        if study.stage == "search":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ray_tune.execute(study, check_interrupted=stop_after_the_baselines)
    placed = [(row["device"], row["trials_at_once"]) for row in events(study) if row["event"] == "placed"]
    assert placed == [("cpu", 2), ("cpu", 1)]
    assert "memory is the limit" in study.placed
    assert study.memory is not None
    assert 0.36e9 < study.memory["process_bytes"] < 0.9e9


def test_a_gpu_that_torch_cannot_use_stops_the_study(tmp_path: Path, two_gpus: None) -> None:
    """Training on the CPU instead would take days without a word."""
    study = open_study(sweep_file(tmp_path), tmp_path / "results")
    with pytest.raises(UserError, match=r"Ray gives a trial the GPU [01], but torch .* cannot use it") as refused:
        ray_tune.execute(study)
    assert "resources.gpus_per_worker: 0" in str(refused.value)
