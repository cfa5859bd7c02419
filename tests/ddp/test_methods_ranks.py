"""2 and 4 processes compute the loss and the gradient that one computes for the same global batch, whatever the method.

Shares are weighted as in the training loop, so only rounding may differ: to 1e-9 in float64, to 1e-4 in float32.
"""

from functools import cache
from typing import Any

import pytest
import torch
import torch.distributed as dist
from groups import Group
from losses import CLASSES, CONFIGS, RELATIONAL, STUDENT, batch, context, criterion, method, normal, order, outputs
from torch import Tensor, nn

from kdtrain.methods.base import Batch, LossTerm, Outputs, weighted_sum
from kdtrain.models.sync_batch_norm import convert_sync_batchnorm
from kdtrain.runtime import distributed

pytestmark = pytest.mark.ddp

SIZES = {"float64": (1, 2, 5, 8), "float32": (2, 5)}
"""Images of the global batch: at 1 and 2 some ranks have no share of it, at 5 the shares differ."""

TOLERANCE = {"float64": {"rtol": 1e-9, "atol": 1e-12}, "float32": {"rtol": 1e-4, "atol": 1e-5}}

CRITIC: dict[str, Any] = {"name": "logits_discriminator", "temperature": 1.5, "balance": {"alpha": 0.3}}
PUBLISHED = CRITIC | {"convention": "published"}
STEP, CRITICS_STEP = 25, 3
"""Steps of the student's and of the critic's turn, where the published critic has 21 in an epoch."""

MANY_CLASSES = 12
ALL = {
    **{label: (config, CLASSES, STEP) for label, config in CONFIGS.items()},
    "critic, student's turn": (CRITIC, MANY_CLASSES, STEP),
    "critic published, student's turn": (PUBLISHED, MANY_CLASSES, STEP),
    "critic published, critic's turn": (PUBLISHED, MANY_CLASSES, CRITICS_STEP),
}  # fmt: skip
CRITICS_TURN = {
    "critic, gradient penalty": CRITIC,
    "critic, clipping": CRITIC | {"critic_training": {"lipschitz": {"name": "clipping"}}},
}

Numbers = dict[str, Tensor]


class Distilling(nn.Module):
    """A linear map from 6 numbers per image to all outputs that a criterion needs, and the criterion, in one DDP."""

    def __init__(self, config: dict[str, Any], classes: int) -> None:
        super().__init__()
        self.shapes = {stage: STUDENT[stage] for stage in method(config).needed_stages}
        sizes = {"logits": classes, **{stage: torch.Size(shape).numel() for stage, shape in self.shapes.items()}}
        self.heads = nn.ModuleDict({name: nn.Linear(6, size) for name, size in sizes.items()})
        self.criterion = criterion(config, classes=classes)
        for name, parameter in self.named_parameters():
            parameter.data = normal(*parameter.shape, purpose=name)

    def forward(self, images: Tensor, teacher: Outputs, of: Batch, critic: nn.Module | None) -> dict[str, LossTerm]:
        maps = {stage: self.heads[stage](images).view(-1, *shape).relu() for stage, shape in self.shapes.items()}
        return self.criterion(Outputs(self.heads["logits"](images), maps), teacher, of, critic)


def share(size: int, classes: int, step: int, dtype: torch.dtype) -> tuple[Tensor, Outputs, Batch]:
    """Return this process's images [n, 6], teacher outputs and batch; an idle rank has one image of weight 0."""
    whole, images = batch(size, classes=classes), normal(size, 6, purpose="images", dtype=dtype)
    teacher = outputs("teacher", size, classes=classes, dtype=dtype)
    own = distributed.share(torch.arange(size))
    count = len(own)
    own = own if count else torch.tensor([0])
    of = Batch(
        whole.target[own], whole.indices[own], step=step, epoch_step=step, epoch=2, size=size, count=count
    )  # fmt: skip
    return images[own], order(teacher, own), of


def in_group(module: nn.Module) -> nn.Module:
    if not dist.is_initialized():
        return module
    module = convert_sync_batchnorm(module, torch.device("cpu"))
    return nn.parallel.DistributedDataParallel(module)


def differentiated(module: nn.Module, terms: dict[str, LossTerm], of: Batch) -> Numbers:
    """Return the means of all terms over the global batch, all gradients and all buffers."""
    (weighted_sum(terms) * (of.count * distributed.size() / of.size)).backward()
    means = {name: distributed.sum_over_ranks(term.value.detach() * of.count) / of.size for name, term in terms.items()}
    gradients = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    return {**means, **gradients, **{f"buffer {name}": value for name, value in module.named_buffers()}}


def turn(label: str, size: int, dtype: torch.dtype) -> Numbers:
    config, classes, step = ALL[label]
    module = Distilling(config, classes).to(dtype)
    critic = None
    if config is CRITIC:
        critic = method(config).critic(context(classes=classes)).loss.critic.to(dtype).requires_grad_(False)
    wrapped = in_group(module)
    images, teacher, of = share(size, classes, step, dtype)
    with distributed.idle(of.count == 0):
        terms = wrapped(images, teacher, of, critic)
    return differentiated(module, terms, of)


def critics_turn(label: str, size: int, dtype: torch.dtype) -> Numbers:
    module = method(CRITICS_TURN[label]).critic(context(classes=MANY_CLASSES)).loss.to(dtype)
    images, teacher, of = share(size, MANY_CLASSES, CRITICS_STEP, dtype)
    student = 3 * images @ normal(6, MANY_CLASSES, purpose="student", dtype=dtype)
    wrapped = in_group(module)  # it lives until the gradients are averaged
    return differentiated(module, wrapped(student, teacher.logits, of), of)


@cache
def results() -> dict[str, dict[tuple[str, int], Numbers]]:
    found: dict[str, dict[tuple[str, int], Numbers]] = {}
    for name, sizes in SIZES.items():
        dtype = getattr(torch, name)
        found[name] = {(label, size): turn(label, size, dtype) for label in ALL for size in sizes}
        found[name] |= {(label, size): critics_turn(label, size, dtype) for label in CRITICS_TURN for size in sizes}
    return found


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("label", [*ALL, *CRITICS_TURN])
def test_all_ranks_have_the_loss_and_the_gradient_of_one(label: str, dtype: str, group: Group) -> None:
    for size in SIZES[dtype]:
        single = results()[dtype][label, size]
        for found in group.of(__name__):
            torch.testing.assert_close(
                found[dtype][label, size], single, **TOLERANCE[dtype],
                msg=lambda text, size=size: f"{size} images: {text}",
            )  # fmt: skip


@pytest.mark.parametrize("label", ALL)
def test_what_is_compared_are_a_loss_and_gradients_of_the_student(label: str) -> None:
    """Otherwise the comparison above would be empty."""
    single = results()["float64"][label, 8]
    assert {"cross_entropy", "heads.logits.weight"} < single.keys()
    assert all(single[name].abs().max() > 0 for name in ("cross_entropy", "heads.logits.weight"))


@pytest.mark.parametrize("label", RELATIONAL)
def test_the_mean_of_both_shares_own_losses_would_be_another_loss(label: str) -> None:
    """So the comparison above can fail."""
    halves = [torch.arange(8)[rank::2] for rank in range(2)]
    made, of = criterion(CONFIGS[label]), batch(8)
    student, teacher = outputs("student", 8), outputs("teacher", 8)
    whole = weighted_sum(made(student, teacher, of))
    parts = [
        weighted_sum(made(order(student, half), order(teacher, half), batch(4, target=of.target[half])))
        for half in halves
    ]
    assert abs(torch.stack(parts).mean() - whole) > 1e-3 * whole
