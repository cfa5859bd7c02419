"""The memory that a piece of work needs, in the process and on its GPU, and what happens without enough of it."""

import gc
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from kdtrain.runtime.process import peak_memory_bytes, reset_peak_memory


@dataclass
class PeakMemory:
    """The most memory that a piece of work has held, in bytes.

    `process_bytes` is the process's own memory, without the pages of files, which processes share. `gpu_bytes` is what
    torch has reserved on the GPU, with its unused parts, but without CUDA's own memory; 0 without a GPU.
    """

    process_bytes: int = 0
    gpu_bytes: int = 0


@contextmanager
def peak_memory(device: torch.device) -> Iterator[PeakMemory]:
    """Measure the peak while the context lasts; earlier work of the process leaves nothing in the GPU's number."""
    peak = PeakMemory()
    release_gpu_memory()
    reset_peak_memory(device)
    try:
        yield peak
    finally:
        peak.process_bytes = _own_peak_bytes()
        peak.gpu_bytes = torch.cuda.max_memory_reserved(device) if device.type == "cuda" else 0


def gpu_total_bytes(device: torch.device) -> int:
    """Return the size of a GPU's memory; 0 of another device."""
    return int(torch.cuda.get_device_properties(device).total_memory) if device.type == "cuda" else 0


def release_gpu_memory() -> None:
    """Give the memory that torch has reserved and does not use back to the other processes on the GPU."""
    if torch.cuda.is_initialized():
        gc.collect()  # an exception's traceback holds the tensors of its frames
        torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Return True if the GPU's memory was exhausted; False for the memory of the machine."""
    told = isinstance(error, RuntimeError) and any(text in str(error) for text in OUT_OF_MEMORY)
    return isinstance(error, torch.OutOfMemoryError) or told


OUT_OF_MEMORY = (
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "MPS backend out of memory",
)
"""What libraries other than torch's own allocator say in a plain RuntimeError."""


def held_by_others_bytes(device: torch.device) -> int:
    """Return the memory of a GPU that other processes hold, an estimate from below."""
    free, total = torch.cuda.mem_get_info(device)
    return max(0, total - free - torch.cuda.memory_reserved(device) - CUDA_BYTES)


CUDA_BYTES = 1 << 30
"""An upper bound of what CUDA itself takes on a GPU for each process: its context, kernels and libraries."""


def _own_peak_bytes() -> int:
    """Return the peak of this process's memory without the pages of files; with them if the system has no /proc."""
    status = Path("/proc/self/status")
    if status.exists():
        kib = dict(re.findall(r"^(VmHWM|RssFile):\s+(\d+) kB", status.read_text(), re.MULTILINE))
        if "VmHWM" in kib:
            return (int(kib["VmHWM"]) - int(kib.get("RssFile", 0))) * 1024
    return peak_memory_bytes(torch.device("cpu"))
