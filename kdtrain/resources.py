"""What a trial needs of a machine or cluster, and how many fit at once. Needs no Ray, so it can be said beforehand."""

import math
import os
from collections.abc import Mapping, Sequence

from kdtrain.config.settings import Resources
from kdtrain.errors import UserError


def per_worker(resources: Resources) -> dict[str, float]:
    needed = {"cpu": float(resources.cpus_per_worker + resources.loaders)}
    if resources.gpus_per_worker:
        needed["gpu"] = resources.gpus_per_worker
    return needed


def concurrent_trials(resources: Resources, nodes: Sequence[Mapping[str, float]]) -> int:
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


def machine_resources() -> dict[str, float]:
    """CPUs that this process may use, and GPUs, of this machine."""
    import torch

    return {"CPU": float(len(os.sched_getaffinity(0))), "GPU": float(torch.cuda.device_count())}
