"""Two processes compute the loss and the gradient that one computes for the same global batch, whatever the method.

Everything is float64 and weighed as the loop weighs it, so that nothing but rounding may differ.
"""

from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from losses import CLASSES, CONFIGS, RELATIONAL, STUDENT, batch, criterion, method, normal, order, outputs
from torch import Tensor, nn

from kdtrain import ranks
from kdtrain.environment import prepare_process
from kdtrain.methods import Batch, Outputs, Term, weighted_sum

pytestmark = pytest.mark.ddp

RANKS = 2
SIZES = (1, 2, 5, 8)
"""Images of the global batch: at 1 the second rank has no share of it, at 5 the shares differ."""

Answer = dict[str, Tensor]


class Distilling(nn.Module):
    """A linear map from 6 numbers an image to all that a criterion reads, and the criterion: what one DDP wraps."""

    def __init__(self, label: str) -> None:
        super().__init__()
        self.shapes = {stage: STUDENT[stage] for stage in method(CONFIGS[label]).needed_stages}
        sizes = {"logits": CLASSES, **{stage: torch.Size(shape).numel() for stage, shape in self.shapes.items()}}
        self.heads = nn.ModuleDict({name: nn.Linear(6, size) for name, size in sizes.items()})
        self.criterion = criterion(CONFIGS[label])
        for name, parameter in self.named_parameters():
            parameter.data = normal(*parameter.shape, purpose=name)

    def forward(self, images: Tensor, teacher: Outputs, of: Batch) -> dict[str, Term]:
        maps = {stage: self.heads[stage](images).view(-1, *shape).relu() for stage, shape in self.shapes.items()}
        return self.criterion(Outputs(self.heads["logits"](images), maps), teacher, of)


def answer(label: str, size: int) -> Answer:
    """The loss and all gradients of a global batch, from this process's share of it."""
    module = Distilling(label)
    whole, teacher, images = batch(size, step=3, epoch=2), outputs("teacher", size), normal(size, 6, purpose="images")
    own = ranks.share(torch.arange(size))
    count = len(own)
    own = own if count else torch.tensor([0])  # as the loop does: an idle rank joins the reduction with weight 0
    taught_by = Outputs(teacher.logits[own], {stage: maps[own] for stage, maps in teacher.features.items()})
    of = Batch(whole.target[own], whole.indices[own], step=3, epoch=2, size=size, count=count)
    wrapped = nn.parallel.DistributedDataParallel(module) if dist.is_initialized() else module
    terms = wrapped(images[own], taught_by, of)
    (weighted_sum(terms) * (count * ranks.size() / size)).backward()
    means = {name: ranks.sum_over_ranks(term.value.detach() * count) / size for name, term in terms.items()}
    gradients = {name: parameter.grad for name, parameter in module.named_parameters()}
    return {**means, **{name: gradient for name, gradient in gradients.items() if gradient is not None}}


def work(rank: int, folder: str) -> None:
    prepare_process(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/group", rank=rank, world_size=RANKS, timeout=timedelta(seconds=120)
    )
    answers = {(label, size): answer(label, size) for label in CONFIGS for size in SIZES}
    torch.save(answers, Path(folder) / f"rank-{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> list[dict[tuple[str, int], Answer]]:
    folder = tmp_path_factory.mktemp("group")
    torch.multiprocessing.spawn(work, (str(folder),), nprocs=RANKS)
    return [torch.load(folder / f"rank-{rank}.pt") for rank in range(RANKS)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("label", CONFIGS)
def test_two_ranks_have_the_loss_and_the_gradient_of_one(label: str, size: int, group) -> None:
    single = answer(label, size)
    assert {"cross_entropy", CONFIGS[label]["name"], "heads.logits.weight"} < single.keys()
    for said in group:
        torch.testing.assert_close(said[label, size], single, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("label", RELATIONAL)
def test_the_mean_of_both_shares_own_losses_would_be_another_loss(label: str) -> None:
    """Without a gather the ranks would learn something else: the comparison above has something to find."""
    halves = [torch.arange(8)[rank::RANKS] for rank in range(RANKS)]
    made, of = criterion(CONFIGS[label]), batch(8)
    student, teacher = outputs("student", 8), outputs("teacher", 8)
    whole = weighted_sum(made(student, teacher, of))
    parts = [
        weighted_sum(made(order(student, half), order(teacher, half), batch(4, target=of.target[half])))
        for half in halves
    ]
    assert abs(torch.stack(parts).mean() - whole) > 1e-3 * whole
