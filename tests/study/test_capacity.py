"""How many trials fit onto nodes, those that are there and those that a growing cluster may have."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from kdtrain.config.study_settings import Resources
from kdtrain.errors import UserError
from kdtrain.study import capacity
from kdtrain.study.capacity import (
    bootstrap,
    concurrency,
    kinds_of_gpus,
    machine_resources,
    nodes_at_least,
    nodes_at_most,
    placed,
    placement,
    share_of_gpu,
    with_gpus,
)
from kdtrain.trials.records import MemoryRecord

ROOT = Path(__file__).parents[2]
HEAD: dict[str, float] = {"CPU": 0, "slot": 64}


GPU: dict[str, float] = {"CPU": 8, "GPU": 1}
GIB = 1 << 30
L4 = 24 * GIB


def measured(gpu_gib: float, process_gib: float = 1.0, total: int = L4) -> MemoryRecord:
    """What preflight checks have found; without `gpu_gib` on a CPU."""
    return {
        "device": "NVIDIA L4" if gpu_gib else "cpu (x86_64)",
        "process_bytes": int(process_gib * GIB),
        "gpu_bytes": int(gpu_gib * GIB),
        "gpu_total_bytes": total if gpu_gib else 0,
    }


@pytest.mark.parametrize(
    ("resources", "nodes", "fit"),
    [
        ({}, [{"CPU": 4}, {"CPU": 2}], 6),
        ({"gpus_per_worker": 0.25}, [{"CPU": 8, "GPU": 1}], 4),
        ({"gpus_per_worker": 1}, [HEAD, {"CPU": 8, "GPU": 1}, {"CPU": 64}], 1),
        ({"workers": 2}, [{"CPU": 1}, {"CPU": 1}], 1),
        ({"workers": 2, "cpus_per_worker": 2}, [{"CPU": 3}, {"CPU": 3}], 1),
        ({"cpus_per_worker": 2, "loaders": 1}, [{"CPU": 8}], 2),
        ({"concurrent_trials": 3}, [{"CPU": 8}], 3),
    ],
)
def test_trials_that_fit_at_once(resources: dict[str, Any], nodes: list[Mapping[str, float]], fit: int) -> None:
    assert placement(Resources(**resources), nodes).at_once == fit


@pytest.mark.parametrize(
    ("resources", "nodes", "worker", "per_gpu", "at_once"),
    [
        ({}, [{"CPU": 4, "GPU": 0}], {"CPU": 1}, None, 4),
        ({}, [GPU], {"CPU": 1, "GPU": 1}, 1, 1),
        ({}, [{"CPU": 64}, GPU, GPU], {"CPU": 1, "GPU": 1}, 1, 2),
        ({"gpus_per_worker": 0}, [GPU], {"CPU": 1}, None, 8),
        ({"workers": 2}, [GPU, GPU], {"CPU": 1, "GPU": 1}, None, 1),
        ({"trials_per_gpu": 3}, [GPU], {"CPU": 1, "GPU": 0.3333}, 3, 3),
        ({"trials_per_gpu": 3}, [{"CPU": 4}], {"CPU": 1}, None, 4),
        ({"trials_per_gpu": 2, "gpus_per_worker": 1}, [GPU, GPU], {"CPU": 1, "GPU": 0.5}, 2, 4),
        ({"gpus_per_worker": 2}, [{"CPU": 8, "GPU": 4}], {"CPU": 1, "GPU": 2}, None, 2),
    ],
)
def test_a_trial_has_a_gpu_where_there_is_one_and_before_anything_is_measured_it_shares_it_only_as_written(
    resources: dict[str, Any], nodes: Any, worker: dict[str, float], per_gpu: int | None, at_once: int
) -> None:
    written = Resources(**resources)
    place = placement(written, nodes)
    assert (place.worker, place.at_once, place.trials_per_gpu) == (worker, at_once, per_gpu)
    assert place.to_be_measured == ("GPU" in worker and set(resources) == set())
    sent = with_gpus(written, nodes).model_dump()
    assert Resources.model_validate(sent).gpus_per_worker * written.workers <= sum(node.get("GPU", 0) for node in nodes)


@pytest.mark.parametrize(
    ("gpu_gib", "per_gpu"),
    [
        (23.0, 1),  # it has run, so one fits
        (8.9, 1),  # 2 * (1.25 * 8.9 + 1) = 24.25
        (8.7, 2),  # 2 * (1.25 * 8.7 + 1) = 23.75
        (3.0, 5),
        (0.1, 8),  # there are 8 CPUs for 21 that would fit
    ],
)
def test_as_many_trials_share_a_gpu_as_the_measured_peak_with_its_margin_allows(gpu_gib: float, per_gpu: int) -> None:
    place = placement(Resources(), [GPU, GPU], measured(gpu_gib))
    assert (place.trials_per_gpu, place.at_once) == (per_gpu, 2 * per_gpu)
    assert per_gpu * place.worker["GPU"] <= 1 < (per_gpu + 1) * place.worker["GPU"]


def test_every_number_of_sharing_trials_fits_as_ray_counts() -> None:
    """Ray rounds a share to 4 digits: six times 0.1667 would be more than one GPU."""
    for trials in range(1, 65):
        assert trials * round(share_of_gpu(trials), 4) <= 1
        place = placement(Resources(trials_per_gpu=trials), [{"CPU": 64, "GPU": 1}])
        assert (place.trials_per_gpu, place.at_once) == (trials, trials)


def test_a_trial_that_runs_alone_has_a_whole_gpu() -> None:
    for resources in (Resources(), Resources(trials_per_gpu=4), Resources(gpus_per_worker=0.25)):
        place = placement(resources, [GPU], measured(1.0), alone=True)
        assert (place.worker, place.trials_per_gpu, place.at_once) == ({"CPU": 1, "GPU": 1}, 1, 1)


def test_gpus_of_several_kinds_are_not_shared_unless_it_is_written() -> None:
    small, large = {**GPU, "accelerator_type:T4": 1.0}, {**GPU, "accelerator_type:L4": 1.0}
    assert [kinds_of_gpus(nodes, {}) for nodes in ([HEAD], [small], [small, large, HEAD], [large, GPU])] == [0, 1, 2, 2]
    assert placement(Resources(), [small, large], measured(1.0), gpu_kinds=2).trials_per_gpu == 1
    assert placement(Resources(trials_per_gpu=4), [small, large], measured(1.0), gpu_kinds=2).trials_per_gpu == 4
    cluster = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    assert kinds_of_gpus([HEAD], cluster) == 1
    cluster["available_node_types"]["larger"] = {"max_workers": 1, "resources": {"CPU": 48, "GPU": 4}}
    assert kinds_of_gpus([HEAD, large], cluster) == 2
    cluster["available_node_types"]["larger"]["max_workers"] = 0
    assert kinds_of_gpus([HEAD, large], cluster) == 1


@pytest.mark.parametrize(
    ("memory_gib", "at_once", "limits"),
    [(64, 8, False), (10, 8, False), (9.9, 7, True), (4, 3, True), (0.5, 1, True)],
)
def test_the_memory_of_a_machine_limits_the_number_of_trials_at_once(
    memory_gib: float, at_once: int, limits: bool
) -> None:
    """A process was measured to take 1 GiB, so it is given 1.25."""
    nodes = [{"CPU": 8, "memory": memory_gib * GIB}]
    assert placement(Resources(), nodes).at_once == 8, "nothing is measured yet"
    place = placement(Resources(), nodes, measured(0))
    assert (place.at_once, place.memory_limits) == (at_once, limits)
    assert place.worker.get("memory", 0) * at_once <= memory_gib * GIB
    assert ("memory is the limit" in placed(place, "cpu", measured(0))) == limits


def test_a_containers_limits_are_those_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = machine_resources(Resources(gpus_per_worker=0))
    for quota, cpus in ((None, whole["CPU"]), (1.9, 1.0), (0.5, 1.0), (4096.0, whole["CPU"])):
        monkeypatch.setattr(capacity, "cpu_limit", lambda quota=quota: quota)
        assert machine_resources(Resources(gpus_per_worker=0))["CPU"] == cpus
    for limit, memory in ((None, whole["memory"]), (GIB, GIB), (1 << 60, whole["memory"])):
        monkeypatch.setattr(capacity, "memory_limit_bytes", lambda limit=limit: limit)
        assert machine_resources(Resources(gpus_per_worker=0))["memory"] == memory


def test_the_first_line_names_device_and_number_of_trials() -> None:
    before, after = placement(Resources(), [GPU]), placement(Resources(), [GPU], measured(3.0))
    assert placed(before, "NVIDIA L4").startswith("NVIDIA L4, 1 trial per GPU, 1 trial at once, before")
    assert placed(after, "NVIDIA L4", measured(3.0)).startswith("NVIDIA L4, 5 trials per GPU, 5 trials at once")
    assert placed(placement(Resources(), [{"CPU": 2}]), "cpu") == "cpu, 2 trials at once"
    written = placement(Resources(trials_per_gpu=2), [GPU])
    assert placed(written, "NVIDIA L4") == "NVIDIA L4, 2 trials per GPU, 2 trials at once"


@pytest.mark.parametrize(
    ("resources", "nodes", "problem"),
    [
        ({"workers": 2}, [GPU], "a trial needs 2 GPUs .* but there are 1; write gpus_per_worker: 0"),
        ({"concurrent_trials": 9}, [GPU], "concurrent_trials: 8 trials fit at once, got 9"),
        ({"concurrent_trials": 3, "trials_per_gpu": 2}, [GPU], "concurrent_trials: 2 trials fit at once, got 3"),
        ({"cpus_per_worker": 9}, [GPU], "a trial needs 9 CPUs"),
        ({"gpus_per_worker": 1}, [{"CPU": 4}], "a trial needs 1 GPUs"),
        ({"cpus_per_worker": 4}, [{"CPU": 3}, {"CPU": 3}], "1 workers are needed, but 0 fit onto 2 nodes"),
        ({}, [{"CPU": 0, "GPU": 1}, {"CPU": 8}], "0 fit onto 2 nodes; write gpus_per_worker: 0 to train on the CPU"),
    ],
)
def test_what_does_not_fit_is_refused(resources: dict[str, Any], nodes: Any, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        placement(Resources(**resources), nodes)


@pytest.mark.parametrize(
    ("resources", "problem"),
    [
        ({"trials_per_gpu": 2, "gpus_per_worker": 0.5}, "trials_per_gpu must be auto if gpus_per_worker is 0.5"),
        ({"trials_per_gpu": 2, "gpus_per_worker": 0}, "trials_per_gpu must be auto if gpus_per_worker is 0"),
        ({"trials_per_gpu": 2, "workers": 2}, "trials_per_gpu must be auto if a trial has 2 workers"),
        ({"gpus_per_worker": 1.5}, "gpus_per_worker must be a whole number above 1, got 1.5"),
    ],
)
def test_settings_that_contradict_one_another_are_refused(resources: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        Resources(**resources)


def test_a_cluster_that_begins_without_a_worker_is_planned_as_it_may_grow() -> None:
    cluster = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    at_most = nodes_at_most([HEAD], cluster)
    gpu = {"CPU": 8, "GPU": 1}
    assert at_most == [HEAD, gpu, gpu, gpu, gpu]
    assert nodes_at_least(cluster) == 1
    assert concurrency(Resources(), [HEAD], at_most) == (0, 4), "auto takes the GPUs that are yet to come"
    halves = Resources(gpus_per_worker=0.5)
    assert concurrency(halves, [HEAD], at_most) == (0, 8)
    assert concurrency(halves, at_most, at_most) == (8, 8)
    with pytest.raises(UserError, match="a trial needs 8 GPUs"):
        concurrency(Resources(workers=8, gpus_per_worker=1), [HEAD], at_most)


def test_machines_of_ones_own_are_awaited_and_counted_as_they_are() -> None:
    there: list[Mapping[str, float]] = [HEAD, {"CPU": 2}, {"CPU": 16}]
    local = {
        "head_node_type": "local.cluster.node",
        "max_workers": 2,
        "available_node_types": {"local.cluster.node": {"min_workers": 2, "max_workers": 2, "resources": {}}},
    }
    assert nodes_at_least(local) == 3
    assert nodes_at_most(there, local) == there


def test_where_nothing_says_so_a_cluster_is_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert bootstrap() == {}
    assert nodes_at_least({}) == 0
    assert nodes_at_most([HEAD], {}) == [HEAD]
