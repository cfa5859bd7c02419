"""The number of trials that a machine or cluster runs at once. Needs no Ray."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from kdtrain.config.study_settings import Resources
from kdtrain.errors import UserError
from kdtrain.runtime.device import device_name, gpus_that_torch_lacks
from kdtrain.runtime.limits import cpu_limit, memory_limit_bytes
from kdtrain.runtime.memory import CUDA_BYTES
from kdtrain.trials.records import MemoryRecord

Nodes = Sequence[Mapping[str, float]]
"""The resources of each node: {"CPU": n, "GPU": n, "memory": bytes}; without "memory" it is taken for sufficient."""

MEMORY_MARGIN = 1.25
"""What a trial is given over the measured memory: many epochs may need more than the preflight checks' updates."""
GB = 1e9
RAY_DIGITS = 10_000
"""Ray counts a share of a GPU in units of 1/10,000."""


@dataclass(frozen=True)
class Placement:
    """What a trial takes of the nodes, and how many trials run at once.

    Attributes:
        worker: What each worker takes: {"CPU": n, "GPU": n, "memory": bytes}; GPU and memory only if they matter.
        at_once: The number of trials at the same time.
        trials_per_gpu: The number of trials that share a GPU; None without a GPU, or if a trial has several.
        memory_limits: True if more trials would run at once if the nodes had more memory.
        to_be_measured: True if more trials may share a GPU as soon as their memory is measured.
    """

    worker: Mapping[str, float]
    at_once: int
    trials_per_gpu: int | None = None
    memory_limits: bool = False
    to_be_measured: bool = False


def with_gpus(resources: Resources, nodes: Nodes) -> Resources:
    """Return the resources with a number in place of `gpus_per_worker: auto`: 1 if any node has a GPU, else 0."""
    if resources.gpus_per_worker != "auto":
        return resources
    if any(node.get("GPU", 0.0) >= 1 for node in nodes):
        return resources.model_copy(update={"gpus_per_worker": 1.0})
    return resources.model_copy(update={"gpus_per_worker": 0.0, "trials_per_gpu": "auto"})  # there is none to share


def placement(
    resources: Resources, nodes: Nodes, memory: MemoryRecord | None = None, *, gpu_kinds: int = 1, alone: bool = False
) -> Placement:
    """Return where trials run. A worker fits onto one node; a trial's workers may be on several.

    Trials share a GPU as `resources` say; if both settings are auto, as many as the measured memory allows. It is one
    without a measurement, and if there are GPUs of several kinds, of which the measurement knows only one.

    Args:
        resources: The sweep's resources.
        nodes: The nodes that there are, or may be.
        memory: The most that the preflight checks have measured, or None.
        gpu_kinds: The number of kinds of GPUs among the nodes; see `kinds_of_gpus`.
        alone: If true, a trial has a GPU for itself, whatever is written.

    Raises:
        UserError: Not even one trial fits, or fewer than `resources.concurrent_trials`.
    """
    _require_fit(resources, nodes)
    worker = {"CPU": _cpus(resources)}
    gpus, trials_per_gpu = _gpus(resources, nodes), None
    if gpus and alone:
        worker["GPU"] = max(gpus, 1.0)
    elif gpus:
        sharing = _trials_on_a_gpu(resources, nodes, memory if gpu_kinds == 1 else None)
        worker["GPU"] = share_of_gpu(sharing) if gpus == 1 else gpus
    if gpus and resources.workers == 1 and worker["GPU"] <= 1:
        trials_per_gpu = math.floor(1 / worker["GPU"] + 1e-9)
    fit = _workers_that_fit(worker, nodes) // resources.workers
    needed_bytes = math.ceil(MEMORY_MARGIN * memory["process_bytes"]) if memory else 0
    # one trial runs even if it needs more than there is: the check itself has just run there
    at_once = max(1, min(fit, _workers_that_fit({**worker, "memory": needed_bytes}, nodes) // resources.workers))
    if at_once < fit:
        largest = max(node.get("memory", 0.0) for node in nodes)
        worker["memory"] = float(min(needed_bytes, math.floor(largest)))
    wanted = fit if resources.concurrent_trials == "auto" else min(fit, resources.concurrent_trials)
    return Placement(
        worker, min(at_once, wanted), trials_per_gpu,
        memory_limits=at_once < wanted, to_be_measured=gpus > 0 and memory is None and _is_measured(resources),
    )  # fmt: skip


def most_at_once(resources: Resources, nodes: Nodes) -> int:
    """Return the largest number of trials at once that a measurement of their memory could allow."""
    worker = {"CPU": _cpus(resources)}
    gpus = _gpus(resources, nodes)
    if gpus:
        worker["GPU"] = 1 / RAY_DIGITS if _is_measured(resources) else share_of_gpu(_written(resources)) * gpus
    return _workers_that_fit(worker, nodes) // resources.workers


def share_of_gpu(trials: int) -> float:
    """Return the share of a GPU that each of its trials takes, rounded down to what Ray counts."""
    return math.floor(RAY_DIGITS / trials) / RAY_DIGITS


def kinds_of_gpus(alive: Nodes, cluster: Mapping[str, Any]) -> int:
    """Return how many kinds of GPUs a cluster has or may start.

    Nodes that a cluster starts by itself count by node type, because their GPUs are unknown before they are there.
    Other nodes count by the names of their GPUs.
    """
    if nodes_at_most(alive, cluster) != list(alive):
        head = cluster.get("head_node_type")
        types = [
            kind for name, kind in cluster["available_node_types"].items() if name == head or kind.get("max_workers")
        ]
        return sum(bool(kind["resources"].get("GPU")) for kind in types)
    unnamed = any(node.get("GPU") and not names_of_gpus([node]) for node in alive)
    return len(names_of_gpus(alive)) + unnamed


def names_of_gpus(nodes: Nodes) -> list[str]:
    """Return the distinct names that Ray has found for the nodes' GPUs, such as "L4"."""
    return sorted({name.partition(":")[2] for node in nodes for name in node if name.startswith("accelerator_type:")})


def concurrency(resources: Resources, present: Nodes, at_most: Nodes) -> tuple[int, int]:
    """Return how many trials run at once on the present nodes (perhaps none), and on all that the cluster may have.

    Both are counted as before the preflight checks.
    """
    grown = placement(resources, at_most).at_once
    try:
        return placement(with_gpus(resources, at_most), present).at_once, grown
    except UserError:
        return 0, grown


def _cpus(resources: Resources) -> float:
    return float(resources.cpus_per_worker + resources.loaders)


def _gpus(resources: Resources, nodes: Nodes) -> float:
    return float(with_gpus(resources, nodes).gpus_per_worker)


def _is_measured(resources: Resources) -> bool:
    """Return True if a measurement decides how many trials share a GPU."""
    return resources.gpus_per_worker == resources.trials_per_gpu == "auto" and resources.workers == 1


def _written(resources: Resources) -> int:
    return 1 if resources.trials_per_gpu == "auto" else resources.trials_per_gpu


def _trials_on_a_gpu(resources: Resources, nodes: Nodes, memory: MemoryRecord | None) -> int:
    """Return how many trials share a GPU: the number that is written, or what memory, and the CPUs beside it, allow."""
    if not _is_measured(resources) or memory is None or not memory["gpu_bytes"]:
        return _written(resources)
    by_memory = math.floor(memory["gpu_total_bytes"] / (MEMORY_MARGIN * memory["gpu_bytes"] + CUDA_BYTES))
    with_gpu = [node for node in nodes if node.get("GPU", 0.0) >= 1]
    by_cpu = max(math.floor(node.get("CPU", 0.0) / _cpus(resources) / node["GPU"]) for node in with_gpu)
    return max(1, min(by_memory, by_cpu))


def _workers_that_fit(worker: Mapping[str, float], nodes: Nodes) -> int:
    """Return how many workers fit onto the nodes; a node that does not tell its memory has enough."""
    return sum(
        min(
            math.floor(node.get(name, 0.0) / each + 1e-9)
            for name, each in worker.items()
            if each and (name != "memory" or name in node)
        )
        for node in nodes
    )


def _require_fit(resources: Resources, nodes: Nodes) -> None:
    """Raise UserError if not even one trial fits onto the nodes, or fewer than `resources.concurrent_trials`."""
    fit = most_at_once(resources, nodes)
    if fit == 0:
        needed = {"CPU": _cpus(resources), "GPU": _gpus(resources, nodes)}
        advice = "; write gpus_per_worker: 0 to train on the CPU" if needed["GPU"] else ""
        for name, each in needed.items():
            total = sum(node.get(name, 0.0) for node in nodes)
            if each * resources.workers > total:
                raise UserError(
                    f"resources: a trial needs {each * resources.workers:g} {name}s "
                    f"({resources.workers} workers of {each:g}), but there are {total:g}"
                    + (advice if name == "GPU" else "")
                )
        there = _workers_that_fit({name: each for name, each in needed.items() if each}, nodes)
        onto = f"{there} fit onto {len(nodes)} nodes"
        raise UserError(f"resources: {resources.workers} workers are needed, but {onto}{advice}")
    if resources.concurrent_trials != "auto" and resources.concurrent_trials > fit:
        raise UserError(f"resources.concurrent_trials: {fit} trials fit at once, got {resources.concurrent_trials}")


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


def first_place(resources: Resources) -> str:
    """Return where a sweep runs on this machine before anything is measured; UserError if not even one trial fits."""
    nodes = [machine_resources(resources)]
    return placed(placement(resources, nodes), device_of_trials(resources, nodes, gpu_name()))


def device_of_trials(resources: Resources, nodes: Nodes, gpu: str) -> str:
    """Return the name of the GPU if trials use one, else "cpu"."""
    return gpu if with_gpus(resources, nodes).gpus_per_worker else "cpu"


def gpu_name() -> str:
    """Return the name of this machine's first GPU, such as "NVIDIA L4"; "GPU" if torch sees none."""
    return device_name(torch.device("cuda", 0)) if torch.cuda.is_available() else "GPU"


def placed(place: Placement, device: str, memory: MemoryRecord | None = None) -> str:
    """Return where trials run, as the first line of a sweep says it.

    Args:
        place: The placement.
        device: The device's name, such as "NVIDIA L4" or "cpu".
        memory: The most that the preflight checks have measured; None before.
    """
    parts = [device]
    if place.trials_per_gpu is not None:
        parts.append(f"{place.trials_per_gpu} trial{'s' * (place.trials_per_gpu > 1)} per GPU")
    parts.append(f"{place.at_once} trial{'s' * (place.at_once > 1)} at once")
    if place.to_be_measured:
        parts.append("before the preflight checks have measured their memory")
    if memory is not None and memory["gpu_bytes"]:
        used, there = memory["gpu_bytes"] / GB, memory["gpu_total_bytes"] / GB
        parts.append(f"a trial was measured to take {used:.1f} GB of a GPU's {there:.1f} GB")
    if memory is not None and place.memory_limits:
        parts.append(f"memory is the limit: a process was measured to take {memory['process_bytes'] / GB:.1f} GB")
    return ", ".join(parts)


def machine_resources(resources: Resources) -> dict[str, float]:
    """Return the CPUs and the memory that this process may use, a container's limits included, and the GPUs.

    Raises:
        UserError: The machine has a GPU that torch cannot use, and `resources` would use it.
    """
    unusable = gpus_that_torch_lacks() if resources.gpus_per_worker == "auto" else []
    if unusable:
        raise UserError(
            f"resources.gpus_per_worker: auto finds {', '.join(unusable)}, which torch {torch.__version__} cannot use;"
            " install a torch built with CUDA or a newer driver, or write 0 to train on the CPU"
        )
    affinity = getattr(os, "sched_getaffinity", None)  # absent on macOS
    cpus = len(affinity(0)) if affinity else os.cpu_count() or 1
    total_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "CPU": float(max(1, min(cpus, math.floor(cpu_limit() or cpus)))),
        "GPU": float(torch.cuda.device_count()),
        "memory": float(min(total_bytes, memory_limit_bytes() or total_bytes)),
    }
