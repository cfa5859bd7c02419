"""Random numbers by name: each comes from (seed, purpose, indices) and never depends on what was drawn before.

So a restart, a reused process or another number of workers changes no random number.
"""

import hashlib

import torch


def stream(seed: int, purpose: str, *indices: int) -> int:
    """Return the seed of a named random stream.

    Args:
        seed: The seed of the recipe, the study or the data split.
        purpose: What the numbers are for, e.g. "order".
        indices: What distinguishes the streams of one purpose, e.g. the epoch.

    Returns:
        A 63-bit seed, equal for equal arguments.
    """
    text = "/".join([str(seed), purpose, *map(str, indices)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, purpose: str, *indices: int) -> torch.Generator:
    """Return a CPU generator at the start of the stream of these arguments; see `stream`."""
    return torch.Generator().manual_seed(stream(seed, purpose, *indices))
