"""2 and 4 real processes measure the network that rank 0 holds: each image once, and all get the same numbers."""

import pytest
import torch
from groups import Group
from torch import nn

from kdtrain.data.base import Split, TensorImages
from kdtrain.runtime import distributed
from kdtrain.runtime.rng import generator
from kdtrain.training.evaluation import logits_of, student_metrics, tta_logits

pytestmark = pytest.mark.ddp

CPU = torch.device("cpu")
SIZES = (1, 5, 301)
UNEVEN = 10_001


class Mirrored(TensorImages):
    def tta_view(self, indices: torch.Tensor) -> torch.Tensor:
        views = self.eval_view(indices)
        return torch.stack([views, views.flip(3)], dim=1)


class Watched(TensorImages):
    """Notes which images are asked for."""

    def __init__(self, pixels: torch.Tensor) -> None:
        super().__init__(pixels)
        self.asked = torch.zeros(len(pixels), dtype=torch.int64)

    def eval_view(self, indices: torch.Tensor) -> torch.Tensor:
        self.asked[indices] += 1
        return super().eval_view(indices)


def pixels(count: int) -> torch.Tensor:
    return torch.randint(256, (count, 1, 4, 4), generator=generator(0, "pixels", count)).to(torch.uint8)


def split(count: int) -> Split:
    return Split(Mirrored(pixels(count)), torch.zeros(count, dtype=torch.int64))


def network(rank: int) -> nn.Module:
    """Equal weights on all ranks, BatchNorm's statistics of the rank's own batches: as `per_worker` leaves them."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(16, 3))
    layers[0].running_mean.fill_(0.3 * (rank + 1))
    layers[0].num_batches_tracked.fill_(7 + rank)
    return layers


def results() -> dict[str, torch.Tensor]:
    layers = network(distributed.rank())
    found = {f"plain {count}": logits_of(layers, split(count), CPU) for count in SIZES}
    found |= {f"tta {count}": tta_logits(layers, split(count), CPU) for count in SIZES}
    found |= {f"buffer {name}": value for name, value in layers.named_buffers()}
    watched = Watched(pixels(UNEVEN))
    logits = logits_of(layers, Split(watched, labels(UNEVEN)), CPU)
    metrics = student_metrics(logits, labels(UNEVEN))
    return found | {
        "uneven": logits, "asked": distributed.sum_over_ranks(watched.asked),
        **{f"metric {name}": torch.tensor(value, dtype=torch.float64) for name, value in metrics.items()},
    }  # fmt: skip


def labels(count: int) -> torch.Tensor:
    return torch.arange(count) % 3


def test_all_ranks_measure_the_network_of_rank_0_as_one_process_does(group: Group) -> None:
    alone = results()
    for found in group.of(__name__):
        assert found.keys() == alone.keys()
        for name, value in found.items():
            torch.testing.assert_close(value, alone[name], rtol=1e-6, atol=1e-6)
        assert {name: value.dtype for name, value in found.items()} == {k: v.dtype for k, v in alone.items()}


def test_of_10001_images_each_is_asked_for_once_and_counts_once(group: Group) -> None:
    alone = results()
    for found in group.of(__name__):
        assert found["uneven"].shape == (UNEVEN, 3)
        assert (found["asked"] == 1).all()
        right = round(found["metric accuracy"].item() * UNEVEN)
        assert right == (alone["uneven"].argmax(1) == labels(UNEVEN)).sum()
        assert found["metric accuracy"] == right / UNEVEN
        torch.testing.assert_close(found["metric nll"], alone["metric nll"], rtol=1e-6, atol=0)
