"""Groups of real processes on gloo, of 2 and of 4, that answer several test files: starting them takes the time.

A test file has `answers()`: what one process finds, alone or as a rank of a group. Each process is asked once.
"""

import importlib
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from kdtrain.runtime.process import prepare_process

RANKS = (2, 4)
PATIENCE = timedelta(seconds=600)


@dataclass(frozen=True)
class Group:
    """said[rank][file]: what `answers()` of that test file returned there."""

    ranks: int
    said: list[dict[str, Any]]

    def of(self, file: str) -> list[Any]:
        """Of each rank."""
        return [said[file] for said in self.said]


def work(rank: int, ranks: int, folder: str, files: tuple[str, ...]) -> None:
    prepare_process(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=ranks, timeout=PATIENCE)
    torch.save({file: importlib.import_module(file).answers() for file in files}, Path(folder) / f"rank-{rank}.pt")
    dist.destroy_process_group()


def asked(ranks: int, folder: Path, files: tuple[str, ...]) -> Group:
    """What they said, in `folder`; they are started where they have not said it yet."""
    saved = [folder / f"rank-{rank}.pt" for rank in range(ranks)]
    if not all(file.exists() for file in saved):
        folder.mkdir(exist_ok=True)
        torch.multiprocessing.spawn(work, (ranks, str(folder), files), nprocs=ranks)
    return Group(ranks, [torch.load(file) for file in saved])
