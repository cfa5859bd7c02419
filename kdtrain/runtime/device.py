"""The device of a training: which one it is, copies that do not wait for it, and its random generator."""

import os
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor


def best_device() -> torch.device:
    """Return what a process without a choice takes: cuda if there is a GPU, else Apple's mps, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def device_name(device: torch.device, processor: str = platform.machine()) -> str:
    """Return a device's name for people, such as "NVIDIA L4", "mps (arm64)" or "cpu (x86_64)"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} ({processor})"


def gpus_that_torch_lacks(devices: Path = Path("/dev")) -> list[str]:
    """Return NVIDIA's GPUs of this machine, such as "nvidia0", if torch sees none of them; none if they are hidden.

    torch was then built without CUDA, or the driver is older than it needs. A user who sets CUDA_VISIBLE_DEVICES hides
    GPUs on purpose.
    """
    if "CUDA_VISIBLE_DEVICES" in os.environ or torch.cuda.device_count() > 0:
        return []
    return sorted(file.name for file in devices.glob("nvidia*") if re.fullmatch(r"nvidia\d+", file.name))


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Return the values on a device. No CUDA device is waited for if they come from the CPU: they are pinned first."""
    if device.type == "cuda" and values.device.type == "cpu":
        values = values.pin_memory()  # the same tensor if it is pinned already
    return values.to(device, non_blocking=device.type == "cuda")


def seed_generators(device: torch.device, seed: int) -> None:
    """Seed torch's default generators that dropout draws from: those of the CPU and of this device."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):  # manual_seed seeds the current device
            torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


@contextmanager
def kept_generators(device: torch.device) -> Iterator[None]:
    """Restore torch's default generators of the CPU and of this device at the end of the context."""
    mps_state = torch.mps.get_rng_state() if device.type == "mps" else None
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        if mps_state is not None:
            torch.mps.set_rng_state(mps_state)
