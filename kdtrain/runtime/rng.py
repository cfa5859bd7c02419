"""Random numbers by name: every one comes from (seed, purpose, indices), never from what ran before.

So neither a restart, a warm process nor another number of workers changes a draw.
"""

import hashlib

import torch


def stream(seed: int, purpose: str, *indices: int) -> int:
    """A 63-bit seed for one purpose, e.g. `stream(0, "order", epoch)`; equal arguments, equal seed."""
    text = "/".join([str(seed), purpose, *map(str, indices)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, purpose: str, *indices: int) -> torch.Generator:
    """A CPU generator at the start of the stream of that name."""
    return torch.Generator().manual_seed(stream(seed, purpose, *indices))
