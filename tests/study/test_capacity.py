"""How many trials fit onto nodes, those that are there and those that a growing cluster may have."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from kdtrain.config.study_settings import Resources
from kdtrain.errors import UserError
from kdtrain.study.capacity import bootstrap, concurrency, concurrent_trials, nodes_at_least, nodes_at_most

ROOT = Path(__file__).parents[2]
HEAD: dict[str, float] = {"CPU": 0, "slot": 64}


@pytest.mark.parametrize(
    ("resources", "nodes", "fit"),
    [
        ({}, [{"CPU": 4}, {"CPU": 2}], 6),
        ({"gpus_per_worker": 0.25}, [{"CPU": 8, "GPU": 1}], 4),
        ({"gpus_per_worker": 1}, [HEAD, {"CPU": 8, "GPU": 1}, {"CPU": 64}], 1),
        ({"workers": 2}, [{"CPU": 1}, {"CPU": 1}], 1),
        ({"workers": 2, "cpus_per_worker": 2}, [{"CPU": 3}, {"CPU": 3}], 1),
        ({"cpus_per_worker": 2, "loaders": 1}, [{"CPU": 8}], 2),
    ],
)
def test_trials_that_fit_at_once(resources: dict[str, Any], nodes: list[Mapping[str, float]], fit: int) -> None:
    assert concurrent_trials(Resources(**resources), nodes) == fit


def test_a_cluster_that_begins_without_a_worker_is_planned_as_it_may_grow() -> None:
    cluster = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    at_most = nodes_at_most([HEAD], cluster)
    gpu = {"CPU": 8, "GPU": 1}
    assert at_most == [HEAD, gpu, gpu, gpu, gpu]
    assert nodes_at_least(cluster) == 1
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
