"""Networks with batch normalization on 2 and 4 real processes have the gradients, running statistics and trainings of
one process: in float64 to 1e-9, whole trainings to 1e-8, and in float32 to 1e-3 of a tensor's largest number."""

from functools import cache
from typing import Any

import pytest
import torch
import torch.distributed as dist
from groups import Group
from runs import changed, fitted, fresh_state
from torch import Tensor, nn
from torch.nn import functional
from trainings import ALONE, CPU, KD, recipe

from kdtrain.models.build import build
from kdtrain.models.classifier import Classifier
from kdtrain.models.config import Network
from kdtrain.models.sync_batch_norm import convert_sync_batchnorm
from kdtrain.runtime import distributed

pytestmark = pytest.mark.ddp

Numbers = dict[str, Tensor]

PX = 64
SIZES = (1, 3, 8)
"""Images of the global batch: at 1 and 3 some ranks have no share of it, at 3 the others' shares differ."""

STUDENTS: dict[str, dict[str, Any]] = {
    "torchvision": {"model": "resnet18"},
    "timm": {"model": "test_resnet"},
    "timm with activations": {"model": "test_efficientnet"},  # BatchNormAct2d
    "statistics kept, hidden head": {
        "model": "test_resnet", "batch_norm_statistics": "keep", "head": "hidden", "dropout": 0.0,
    },
}  # fmt: skip
SIZED = [(label, size) for label in STUDENTS for size in SIZES if size == 3 or label.startswith("timm")]

TINY = {"model": "test_resnet", "weights": None}
CRITIC = {"name": "logits_discriminator", "temperature": 1.5, "balance": {"alpha": 0.5}}
SHORT = {
    "data": ALONE["data"] | {"resolution": 32}, "batch_size": 19, "epochs": 2, "student": TINY,
    "optimizer": {"name": "sgd", "lr": 0.01, "momentum": 0.9},
}  # fmt: skip
"""60 images: 19, 19, 19 and 3, of which one of four ranks has no share."""

TRAININGS: dict[str, dict[str, Any]] = {
    "kd": SHORT | KD,
    "critic": SHORT | KD | {"method": CRITIC | {"critic_steps": 2, "student_steps": 2}},
    "critic published": SHORT
    | KD
    | {"method": CRITIC | {"convention": "published", "critic_steps": 1, "student_steps": 2, "restart": "epoch"}},
}
CLOSE = {"rtol": 1e-8, "atol": 1e-10}
"""Of losses, weights and running statistics after 8 steps in float64; 3e-12 was measured. In float32 these networks
amplify rounding to 1e-2 by then."""


def steps(label: str, size: int, dtype: torch.dtype = torch.float64) -> Numbers:
    """Run two steps of SGD on a global batch; return losses, first gradients and the state."""
    config = Network.model_validate({"weights": None, **STUDENTS[label]})
    student = build(config, (3, PX, PX), 5, seed=1).to(dtype).train()
    if dist.is_initialized():
        convert_sync_batchnorm(student, CPU)
    wrapped = nn.parallel.DistributedDataParallel(student) if dist.is_initialized() else student
    images = torch.rand(size, 3, PX, PX, generator=torch.Generator().manual_seed(size)).to(dtype)
    own = distributed.share(torch.arange(size))
    count = len(own)
    own = own if count else torch.tensor([0])  # as the loop does: an idle rank runs one image of weight 0
    optimizer = torch.optim.SGD(student.parameters(), 0.05)
    found: Numbers = {}
    for step in range(2):
        optimizer.zero_grad()
        with distributed.idle(count == 0):
            loss = functional.cross_entropy(wrapped(images[own]), own % 5)
        (loss * (count * distributed.size() / size)).backward()
        found[f"loss {step}"] = distributed.sum_over_ranks(loss.detach() * count) / size
        if step == 0:
            found |= {f"gradient {name}": p.grad.clone() for name, p in student.named_parameters()}
        optimizer.step()
    return found | student.state_dict()


def half(images: Tensor) -> Numbers:
    """Run a bfloat16 batch of large mean through one layer, as under autocast."""
    layer = nn.Sequential(nn.BatchNorm2d(images.shape[1]))
    convert_sync_batchnorm(layer, CPU)
    own = distributed.share(torch.arange(len(images)))
    values = images[own].bfloat16().requires_grad_()
    layer(values).square().sum().backward()
    return {"gradient": distributed.gather_rows(values.grad.float(), len(images)), **layer.state_dict()}


def widened(network: Classifier) -> None:
    """Make the network convert its images, which are float32, to float64."""
    normalize = network.normalize
    network.normalize = lambda images: normalize(images.double())  # type: ignore[method-assign]


def training(label: str, **changes: Any) -> Numbers:
    """Run a whole training in float64; return its metrics and the state of the distiller."""
    torch.set_default_dtype(torch.float64)
    try:
        state = fresh_state(recipe(**TRAININGS[label] | changes))
        for network in (state.distiller.student, *(teacher.network for teacher in state.teachers)):
            widened(network)
        rows = fitted(state)
    finally:
        torch.set_default_dtype(torch.float32)
    shown = {
        f"{number} {key}": torch.tensor(value, dtype=torch.float64)
        for number, row in enumerate(rows)
        for key, value in row.items()
        if key.startswith("train/") or key in ("val/nll", "lr", "step", "images")
    }
    weights = {name: value.clone() for name, value in state.distiller.state_dict().items()}
    return shown | weights


@cache
def results() -> dict[str, Any]:
    batch = 30 + 2 * torch.randn(9, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return {
        "steps": {(label, size): steps(label, size) for label, size in SIZED},
        "float32": {label: steps(label, 8, torch.float32) for label in STUDENTS},
        "half": half(batch),
        "trainings": {label: training(label) for label in TRAININGS},
        "per_worker": training("kd", batch_norm="per_worker", batch_size=20),
    }


@pytest.mark.parametrize(("label", "size"), SIZED)
def test_losses_gradients_and_running_statistics_are_those_of_one_process(label: str, size: int, group: Group) -> None:
    single = results()["steps"][label, size]
    assert sum("running_var" in name for name in single) > 10
    by_rank = [found["steps"][label, size] for found in group.of(__name__)]
    for found in by_rank:
        torch.testing.assert_close(found, single, rtol=1e-9, atol=1e-12)
        states = [
            {name: each[name] for name in each if not name.startswith("gradient")} for each in (found, by_rank[0])
        ]
        assert changed(*states) == set()


@pytest.mark.parametrize("label", STUDENTS)
def test_in_float32_loss_and_gradients_are_as_far_apart_as_rounding_is(label: str, group: Group) -> None:
    single = results()["float32"][label]
    for found in group.of(__name__):
        compared = [name for name in single if name.startswith(("gradient", "loss 0"))]
        for name in compared:
            largest = single[name].abs().max().item()
            # a bias before a normalisation has the gradient 0, but for rounding
            tolerance = {"rtol": 1e-3, "atol": 1e-3 * largest + 1e-5}
            torch.testing.assert_close(found["float32"][label][name], single[name], **tolerance)


def test_under_autocast_statistics_are_those_of_float32(group: Group) -> None:
    single = results()["half"]
    assert single["0.running_mean"].dtype == torch.float32
    for found in group.of(__name__):
        for name, tolerance in (("running_var", 1e-6), ("running_mean", 1e-6)):
            torch.testing.assert_close(found["half"][f"0.{name}"], single[f"0.{name}"], rtol=tolerance, atol=0)
        torch.testing.assert_close(found["half"]["gradient"], single["gradient"], rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("label", TRAININGS)
def test_a_whole_training_learns_what_one_process_learns_and_the_same_bits_on_all_ranks(
    label: str, group: Group
) -> None:
    single = results()["trainings"][label]
    first, *others = (found["trainings"][label] for found in group.of(__name__))
    torch.testing.assert_close(first, single, **CLOSE)
    for other in others:
        assert changed(first, other) == set()


def test_with_statistics_per_worker_another_number_of_workers_is_another_training(group: Group) -> None:
    """So the comparisons above can fail."""
    single = results()["per_worker"]
    first = group.of(__name__)[0]["per_worker"]
    names = ["0 train/loss", *(name for name in single if name.endswith("running_var"))]
    assert len(names) > 10
    for name in names:
        assert (first[name] - single[name]).abs().max() > 1e-3 * single[name].abs().max()


def test_one_worker_alone_does_the_same_whatever_is_written() -> None:
    assert changed(training("kd", batch_size=20), results()["per_worker"]) == set()
