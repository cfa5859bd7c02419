"""What a trial needs of a machine or cluster, and how many fit at once. Needs no Ray, so it can be said beforehand."""

import os

from kdtrain.config.settings import Resources
from kdtrain.errors import UserError


def per_worker(resources: Resources) -> dict[str, float]:
    needed = {"cpu": float(resources.cpus_per_worker)}
    if resources.gpus_per_worker:
        needed["gpu"] = resources.gpus_per_worker
    return needed


def concurrent_trials(resources: Resources, there: dict[str, float]) -> int:
    """How many trials fit at once into `there` ({"CPU": n, "GPU": n}); UserError where not even one does."""
    fits = []
    for name, each in per_worker(resources).items():
        needed, has = each * resources.workers, there.get(name.upper(), 0.0)
        if needed > has:
            raise UserError(
                f"resources: a trial needs {needed:g} {name.upper()}s ({resources.workers} workers of {each:g}), "
                f"but there are {has:g}"
            )
        fits.append(int(has // needed))
    if resources.concurrent_trials == "auto":
        return min(fits)
    if resources.concurrent_trials > min(fits):
        raise UserError(
            f"resources.concurrent_trials: {min(fits)} trials fit at once, got {resources.concurrent_trials}"
        )
    return int(resources.concurrent_trials)


def machine_resources() -> dict[str, float]:
    """CPUs that this process may use, and GPUs, of this machine."""
    import torch

    return {"CPU": float(len(os.sched_getaffinity(0))), "GPU": float(torch.cuda.device_count())}
