"""Groups of 2 and of 4 real processes on gloo that several test files share, because starting them takes the time.

A test file has `results()`: what one process finds, alone or as a rank of a group. Each process calls it once.
"""

import importlib
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

RANKS = (2, 4)
PATIENCE = timedelta(seconds=600)


@dataclass(frozen=True)
class Group:
    """by_rank[rank][file] is what `results()` of that test file returned there."""

    ranks: int
    by_rank: list[dict[str, Any]]

    def of(self, file: str) -> list[Any]:
        """Return the results of a file by rank."""
        return [files[file] for files in self.by_rank]


def join(rank: int, ranks: int, folder: str) -> None:
    """Make this process a rank of the group that meets in `folder`."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=ranks, timeout=PATIENCE)


def work(rank: int, ranks: int, folder: str, files: tuple[str, ...]) -> None:
    join(rank, ranks, folder)
    torch.save({file: importlib.import_module(file).results() for file in files}, Path(folder) / f"rank-{rank}.pt")
    dist.destroy_process_group()


def results_of(ranks: int, folder: Path, files: tuple[str, ...]) -> Group:
    """Return the results that are in `folder`; start the processes if they are not there yet."""
    saved = [folder / f"rank-{rank}.pt" for rank in range(ranks)]
    if not all(file.exists() for file in saved):
        folder.mkdir(exist_ok=True)
        torch.multiprocessing.spawn(work, (ranks, str(folder), files), nprocs=ranks)
    return Group(ranks, [torch.load(file) for file in saved])
