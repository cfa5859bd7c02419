"""Random numbers by name: each comes from (seed, purpose, indices) and never depends on what was drawn before.

So a restart, a reused process or another number of workers changes no random number.
"""

import hashlib

import torch


def stream(seed: int, purpose: str, *indices: int) -> int:
    """Return the 63-bit seed of the random stream of a purpose, e.g. "order", and indices, e.g. the epoch."""
    text = "/".join([str(seed), purpose, *map(str, indices)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, purpose: str, *indices: int) -> torch.Generator:
    """Return a CPU generator at the start of the stream of these arguments; see `stream`."""
    return torch.Generator().manual_seed(stream(seed, purpose, *indices))
