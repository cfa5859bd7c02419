"""The process and machine that a training runs in: set up alike everywhere, and recorded with its outcome."""

import atexit
import ctypes
import gc
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

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
MOST_KEPT = 1.25
"""So many times what a training needs may stay with a process."""
PACKAGES = ("kdtrain", "torch", "torchvision", "timm", "pillow", "ray", "optuna", "numpy")


def prepare_process(threads: int) -> None:
    """Threads as given and deterministic kernels: equal recipes give equal bits in any process of one machine."""
    torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    _keep_freed_memory()
    keep_imports()


@lru_cache
def keep_imports() -> None:
    """What the imports have made is no garbage as long as the process lives: collections no longer go over it, 0.4 s
    each with Ray and torch, and one follows each training (`FreedMemory`). Where they rested until now
    (`quick_imports`), they are made again from here on."""
    gc.freeze()
    gc.enable()
    atexit.register(gc.unfreeze)  # triton prints what was not taken apart in the end


def _keep_freed_memory() -> None:
    """Memory that a step has freed stays the process's. glibc would give it back to the system after each step and take
    it again page by page: 18 % of a LeNet5 step, 2 % of a ResNet's. Other C libraries have no such switch."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(M_MMAP_THRESHOLD, 2**30)


class FreedMemory:
    """What trainings have freed, in a process that trains one student after the other.

    It is kept for the next one: given back, it is faulted in again, 1 GB of a MobileNetV2's. But in threads of
    their own, as Tune has it, trainings may each leave more (8 of them grew from 2.8 to 9.3 GB), so it is
    given back once a process has grown beyond what a training alone needs.
    """

    def __init__(self) -> None:
        self._needed_bytes = 0
        self._fresh = True

    def after_training(self) -> None:
        gc.collect()
        if not self._needed_bytes:  # after the first one: what it has imported and read stays, too
            gc.freeze()
        malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if self.too_much(resident_bytes()) and malloc_trim is not None:
            malloc_trim(0)

    def too_much(self, resident_bytes: int) -> bool:
        """Whether so much, after a training, is to be given back. What it needs is known of the first one, and of the
        one after each time that it was."""
        if self._fresh:
            self._needed_bytes, self._fresh = max(self._needed_bytes, resident_bytes), False
            return False
        self._fresh = resident_bytes > MOST_KEPT * self._needed_bytes
        return self._fresh


def resident_bytes() -> int:
    """Of this process, as Linux has it."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


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
