"""What a trial needs of a machine or cluster, and how many fit at once. Needs no Ray, so it can be said beforehand."""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from kdtrain.config.study_settings import Resources
from kdtrain.errors import UserError

Nodes = Sequence[Mapping[str, float]]
"""What each has: {"CPU": n, "GPU": n}."""


def per_worker(resources: Resources) -> dict[str, float]:
    needed = {"cpu": float(resources.cpus_per_worker + resources.loaders)}
    if resources.gpus_per_worker:
        needed["gpu"] = resources.gpus_per_worker
    return needed


def concurrent_trials(resources: Resources, nodes: Nodes) -> int:
    """How many trials fit at once onto `nodes` ([{"CPU": n, "GPU": n}]); UserError where not even one does.

    A worker lies on one node; the workers of a trial may lie on several.
    """
    needed = per_worker(resources)
    workers = sum(
        min(math.floor(node.get(name.upper(), 0.0) / each + 1e-9) for name, each in needed.items()) for node in nodes
    )
    fit = workers // resources.workers
    if fit == 0:
        for name, each in needed.items():
            has = sum(node.get(name.upper(), 0.0) for node in nodes)
            if each * resources.workers > has:
                raise UserError(
                    f"resources: a trial needs {each * resources.workers:g} {name.upper()}s "
                    f"({resources.workers} workers of {each:g}), but there are {has:g}"
                )
        raise UserError(f"resources: {resources.workers} workers are needed, but {workers} fit onto {len(nodes)} nodes")
    if resources.concurrent_trials == "auto":
        return fit
    if resources.concurrent_trials > fit:
        raise UserError(f"resources.concurrent_trials: {fit} trials fit at once, got {resources.concurrent_trials}")
    return int(resources.concurrent_trials)


def concurrency(resources: Resources, there: Nodes, at_most: Nodes) -> tuple[int, str]:
    """(how many trials run at once, as a sentence). UserError where not even one ever does."""
    grown = concurrent_trials(resources, at_most)
    try:
        now = concurrent_trials(resources, there)
    except UserError:
        now = 0  # a cluster that begins without a node
    nodes = f"{now} at once on the {len(there)} nodes that are there"
    return (grown, nodes) if grown <= now else (grown, f"{nodes}, {grown} on the {len(at_most)} that there may be")


def bootstrap() -> Mapping[str, Any]:
    """What `ray up` has left on a cluster's head: its nodes, and how many there may be. {} on any other machine."""
    file = Path("~/ray_bootstrap_config.yaml").expanduser()
    return yaml.safe_load(file.read_text()) or {} if file.exists() else {}


def nodes_at_least(cluster: Mapping[str, Any]) -> int:
    """How many nodes the cluster is to have whatever there is to do: its head and what `min_workers` says."""
    types = cluster.get("available_node_types", {})
    return 1 + sum(kind.get("min_workers", 0) for kind in types.values()) if types else 0


def nodes_at_most(alive: Nodes, cluster: Mapping[str, Any]) -> list[Mapping[str, float]]:
    """The resources of the nodes when the cluster has grown as far as it may; of those that are there, where it cannot
    grow or does not say what its nodes will have."""
    types = dict(cluster.get("available_node_types", {}))
    head = types.pop(cluster.get("head_node_type"), {})
    if not types or not all(kind.get("resources") for kind in types.values()):
        return list(alive)
    workers = [kind["resources"] for kind in types.values() for _ in range(kind.get("max_workers", 0))]
    return [head.get("resources", {}), *workers[: cluster.get("max_workers")]]


def machine_resources() -> dict[str, float]:
    """CPUs that this process may use, and GPUs, of this machine."""
    import torch

    return {"CPU": float(len(os.sched_getaffinity(0))), "GPU": float(torch.cuda.device_count())}
