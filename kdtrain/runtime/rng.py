"""Random numbers by name: each comes from (seed, purpose, indices) and never depends on what was drawn before.

So a restart, a reused process or another number of workers changes no random number.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def stream(seed: int, purpose: str, *indices: int) -> int:
    """Return the 63-bit seed of the random stream of a purpose, e.g. "order", and indices, e.g. the epoch."""
    text = "/".join([str(seed), purpose, *map(str, indices)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, purpose: str, *indices: int) -> torch.Generator:
    """Return a CPU generator at the start of the stream of these arguments; see `stream`."""
    return torch.Generator().manual_seed(stream(seed, purpose, *indices))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's default CPU generator for the context and restore it afterwards; those of GPUs are left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
