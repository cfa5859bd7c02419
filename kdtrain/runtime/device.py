"""The device of a training: copies that do not wait for it, and its random generator."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


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
