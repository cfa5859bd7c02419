"""The process and machine that a training runs in, as they are recorded with its outcome."""

import hashlib
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

GIT_S = 10.0
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
    """Return what an outcome records of process and machine: device, threads, workers, state of the code, versions."""
    return {
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "workers": workers,
        **source_state(),
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


@lru_cache
def source_state(package: Path = Path(__file__).parents[1]) -> dict[str, str | None]:
    """Return the commit of the repository that tracks this package, and a digest of what differs from it.

    git_dirty is None if nothing differs, else 16 hexadecimal digits of `git diff HEAD` and of untracked modules of the
    package, or "unknown". Both are None without git, and if the package is only installed inside a repository.
    """
    try:
        if not _git(package, "ls-files", "--", "__init__.py"):
            return {"git_commit": None, "git_dirty": None}
        commit = _git(package, "rev-parse", "HEAD").decode().strip()
    except (OSError, subprocess.SubprocessError):
        return {"git_commit": None, "git_dirty": None}
    try:
        return {"git_commit": commit, "git_dirty": _difference(package)}
    except (OSError, subprocess.SubprocessError):
        return {"git_commit": commit, "git_dirty": "unknown"}


def _difference(package: Path) -> str | None:
    changed = _git(package, "diff", "--no-ext-diff", "--no-textconv", "--no-color", "--binary", "HEAD")
    untracked = _git(package, "ls-files", "-z", "--others", "--exclude-standard", "--", "*.py")
    if not changed and not untracked:
        return None
    digest = hashlib.blake2b(changed, digest_size=8)
    for name in untracked.split(b"\0")[:-1]:
        content = (package / os.fsdecode(name)).read_bytes()
        digest.update(name + b"\0" + hashlib.blake2b(content).digest())
    return digest.hexdigest()


def _git(folder: Path, *arguments: str) -> bytes:
    """Return the output of a git command; GIT_DIR and the like, which a hook sets, are of another repository."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment["GIT_OPTIONAL_LOCKS"] = "0"  # it would write the index
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, check=True, timeout=GIT_S).stdout
