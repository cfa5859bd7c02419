"""The number of trials that a machine or cluster runs at once. Needs no Ray."""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from kdtrain.config.study_settings import Resources
from kdtrain.errors import UserError

Nodes = Sequence[Mapping[str, float]]
"""The resources of each node: {"CPU": n, "GPU": n}."""


def per_worker(resources: Resources) -> dict[str, float]:
    """Return the CPUs and GPUs of one worker, by "cpu" and "gpu"."""
    needed = {"cpu": float(resources.cpus_per_worker + resources.loaders)}
    if resources.gpus_per_worker:
        needed["gpu"] = resources.gpus_per_worker
    return needed


def concurrent_trials(resources: Resources, nodes: Nodes) -> int:
    """Return how many trials run at once. A worker fits onto one node; a trial's workers may be on several.

    Raises:
        UserError: Not even one trial fits, or fewer than `resources.concurrent_trials`.
    """
    needed = per_worker(resources)
    workers = sum(
        min(math.floor(node.get(name.upper(), 0.0) / each + 1e-9) for name, each in needed.items()) for node in nodes
    )
    fit = workers // resources.workers
    if fit == 0:
        for name, each in needed.items():
            total = sum(node.get(name.upper(), 0.0) for node in nodes)
            if each * resources.workers > total:
                raise UserError(
                    f"resources: a trial needs {each * resources.workers:g} {name.upper()}s "
                    f"({resources.workers} workers of {each:g}), but there are {total:g}"
                )
        raise UserError(f"resources: {resources.workers} workers are needed, but {workers} fit onto {len(nodes)} nodes")
    if resources.concurrent_trials == "auto":
        return fit
    if resources.concurrent_trials > fit:
        raise UserError(f"resources.concurrent_trials: {fit} trials fit at once, got {resources.concurrent_trials}")
    return int(resources.concurrent_trials)


def concurrency(resources: Resources, present: Nodes, at_most: Nodes) -> tuple[int, int]:
    """Return how many trials run at once on the present nodes (perhaps none), and on all that the cluster may have."""
    grown = concurrent_trials(resources, at_most)
    try:
        return concurrent_trials(resources, present), grown
    except UserError:
        return 0, grown


def bootstrap() -> Mapping[str, Any]:
    """Return the cluster configuration that `ray up` has left on a cluster's head, {} on any other machine."""
    file = Path("~/ray_bootstrap_config.yaml").expanduser()
    return yaml.safe_load(file.read_text()) or {} if file.exists() else {}


def nodes_at_least(cluster: Mapping[str, Any]) -> int:
    """Return the number of nodes that a cluster always has: its head and `min_workers` of each type."""
    types = cluster.get("available_node_types", {})
    return 1 + sum(kind.get("min_workers", 0) for kind in types.values()) if types else 0


def nodes_at_most(alive: Nodes, cluster: Mapping[str, Any]) -> list[Mapping[str, float]]:
    """Return the nodes' resources when the cluster is at its largest; those alive if it does not declare that."""
    types = dict(cluster.get("available_node_types", {}))
    head = types.pop(cluster.get("head_node_type"), {})
    if not types or not all(kind.get("resources") for kind in types.values()):
        return list(alive)
    workers = [kind["resources"] for kind in types.values() for _ in range(kind.get("max_workers", 0))]
    return [head.get("resources", {}), *workers[: cluster.get("max_workers")]]


def machine_resources() -> dict[str, float]:
    """Return the CPUs that this process may use and the GPUs of this machine."""
    import torch

    return {"CPU": float(len(os.sched_getaffinity(0))), "GPU": float(torch.cuda.device_count())}
