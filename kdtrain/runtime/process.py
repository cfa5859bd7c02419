"""The process and machine that a training runs in: set up alike everywhere, and recorded with its outcome."""

import os
import platform
import re
import resource
import subprocess
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from kdtrain.errors import UserError

PACKAGES = ("kdtrain", "torch", "torchvision", "timm", "pillow", "ray", "optuna", "numpy")


def prepare_process(threads: int) -> None:
    """Set the CPU threads of a process that belongs to kdtrain: their number changes float rounding."""
    torch.set_num_threads(threads)


def compile_into(folder: Path) -> None:
    """Where compiled networks are kept, unless the user has said so: a folder that lives no longer than what uses it,
    since a compiler that is killed may leave broken files."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))


def use_precision(precision: str, device: torch.device) -> None:
    """Whether convolutions on a GPU multiply in TF32: torch's own default would, whatever `fp32` says.

    Matrix products never do: Gram matrices and distances need all their digits. Raises UserError where there is none.
    """
    if precision == "tf32" and (device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0)):
        raise UserError(
            f"recipe.precision: tf32 needs a GPU of compute capability 8.0 or newer, and this trains on {device.type};"
            " write fp32"
        )
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = False


def describe(device: torch.device, workers: int) -> dict[str, Any]:
    """What goes into an outcome beside the numbers: device, threads, workers, commit, versions."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({platform.machine()})"
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "workers": workers,
        "git_commit": _git_commit(),
        "versions": {"python": platform.python_version(), **_versions()},
    }


def rounding(device: torch.device) -> dict[str, Any]:
    """What decides how pixels and products are rounded: a library chooses its kernels by the kind of processor."""
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({_processor()})"
    libraries = {
        name: version for name, version in _versions().items() if name in ("torch", "torchvision", "timm", "pillow")
    }
    return {"device": kind, "threads": torch.get_num_threads(), **libraries}


@lru_cache
def _processor() -> str:
    """Its model, as Linux has it, and the instructions that torch uses of it."""
    told = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = re.search(r"^model name\s*:\s*(.+)$", told, re.MULTILINE)
    return f"{model[1] if model else platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"


def peak_memory_bytes(device: torch.device) -> int:
    """Of the GPU since the process started or the peak was reset; on the CPU of the whole process since its start."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


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
