"""The process and machine that a training runs in, as they are recorded with its outcome."""

import os
import platform
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from kdtrain.runtime.device import device_name

PACKAGES = ("kdtrain", "torch", "torchvision", "timm", "pillow", "ray", "optuna", "numpy")


def compile_into(folder: Path) -> None:
    """Set torch's compiler cache unless the user has. A killed compiler leaves broken files: use a temporary folder."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))


@contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """Use this number of CPU threads, which decides how sums are rounded, and restore the caller's afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def describe(device: torch.device, workers: int) -> dict[str, Any]:
    """Return what an outcome records of process and machine: device, threads, workers, commit, versions."""
    return {
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "workers": workers,
        "git_commit": _git_commit(),
        "versions": {"python": platform.python_version(), **_versions()},
    }


def rounding(device: torch.device) -> dict[str, Any]:
    """Return what decides how numbers are rounded: libraries choose kernels by the model of the processor."""
    libraries = {
        name: version for name, version in _versions().items() if name in ("torch", "torchvision", "timm", "pillow")
    }
    return {"device": device_name(device, _processor()), "threads": torch.get_num_threads(), **libraries}


@lru_cache
def _processor() -> str:
    """Return the processor's model and the instruction set that torch uses."""
    told = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = re.search(r"^model name\s*:\s*(.+)$", told, re.MULTILINE)
    return f"{model[1] if model else platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"


def reset_peak_memory(device: torch.device) -> None:
    """Begin a new measurement of `peak_memory_bytes` on a CUDA device. A process's own peak cannot be reset."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_bytes(device: torch.device) -> int:
    """Return a CUDA device's peak since it was reset, what MPS holds, or on a CPU the peak of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@lru_cache
def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _git_commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
