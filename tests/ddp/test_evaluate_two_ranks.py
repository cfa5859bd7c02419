"""Two real processes on gloo measure the network that rank 0 holds, and both get its numbers."""

from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from kdtrain.data import Split
from kdtrain.data.base import TensorImages
from kdtrain.environment import prepare_process
from kdtrain.evaluate import logits_of, tta_logits
from kdtrain.streams import generator

pytestmark = pytest.mark.ddp

CPU = torch.device("cpu")
SIZES = (1, 5, 301)


class Mirrored(TensorImages):
    def tta_view(self, indices: torch.Tensor) -> torch.Tensor:
        views = self.eval_view(indices)
        return torch.stack([views, views.flip(3)], dim=1)


def split(count: int) -> Split:
    pixels = torch.randint(256, (count, 1, 4, 4), generator=generator(0, "pixels", count)).to(torch.uint8)
    return Split(Mirrored(pixels), torch.zeros(count, dtype=torch.int64))


def network(rank: int) -> nn.Module:
    """Equal weights on all ranks, BatchNorm's statistics of the rank's own batches: as DDP leaves them."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(16, 3))
    layers[0].running_mean.fill_(0.3 * (rank + 1))
    layers[0].num_batches_tracked.fill_(7 + rank)
    return layers


def measured(rank: int) -> dict[str, torch.Tensor]:
    layers = network(rank)
    found = {f"plain {count}": logits_of(layers, split(count), CPU) for count in SIZES}
    found |= {f"tta {count}": tta_logits(layers, split(count), CPU) for count in SIZES}
    return found | {f"buffer {name}": value for name, value in layers.named_buffers()}


def work(rank: int, folder: str) -> None:
    prepare_process(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2, timeout=timedelta(seconds=120)
    )
    torch.save(measured(rank), Path(folder) / f"rank-{rank}.pt")
    dist.destroy_process_group()


def test_all_ranks_measure_the_network_of_rank_0_as_one_process_does(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(work, (str(tmp_path),), nprocs=2)
    alone = measured(0)
    for rank in range(2):
        found = torch.load(tmp_path / f"rank-{rank}.pt")
        assert found.keys() == alone.keys()
        for name, value in found.items():
            torch.testing.assert_close(value, alone[name], rtol=1e-6, atol=1e-6)
        assert {name: value.dtype for name, value in found.items()} == {k: v.dtype for k, v in alone.items()}
