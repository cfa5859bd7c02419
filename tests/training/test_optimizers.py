"""Schedules against torch's own schedulers, optimizers against their formulas by hand."""

from functools import partial

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, ExponentialLR, LinearLR, StepLR

from kdtrain.config.training import (
    Adam,
    AdamW,
    Constant,
    Cosine,
    CosineInSteps,
    EarlyStopping,
    Exponential,
    Linear,
    Sgd,
    Step,
)
from kdtrain.errors import UserError
from kdtrain.training.optimizers import build_optimizer, early_stop, lr_at

LR = 0.3


def per_epoch(schedule, epochs: int, lr: float = LR) -> list[float]:
    """Return the rates of the epochs; each holds for all steps of its epoch."""
    rates = [lr_at(schedule, lr, step, 7, epochs) for step in range(7 * epochs)]
    assert all(len(set(rates[7 * epoch : 7 * epoch + 7])) == 1 for epoch in range(epochs))
    return rates[::7]


def torchs(build, epochs: int, lr: float = LR) -> list[float]:
    """Return the rates of a torch scheduler that is stepped after every epoch."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr)
    scheduler = build(optimizer)
    rates = []
    for _ in range(epochs):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_a_constant_learning_rate_is_the_one_written() -> None:
    assert {lr_at(Constant(name="constant"), LR, step, 10, 5) for step in range(50)} == {LR}


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (Step(name="step", every_epochs=n, factor=f), partial(StepLR, step_size=n, gamma=f))
        for n in (1, 7)
        for f in (0.1, 0.5)
    ]
    + [(Exponential(name="exponential", factor=f), partial(ExponentialLR, gamma=f)) for f in (0.95, 0.7, 0.65)],
    ids=str,
)
def test_step_and_exponential_are_torchs(ours, theirs) -> None:
    assert per_epoch(ours, 25) == pytest.approx(torchs(theirs, 25))


def test_linear_falls_to_zero_after_the_last_step() -> None:
    rates = [lr_at(Linear(name="linear"), LR, step, 10, 3) for step in range(31)]
    assert rates == pytest.approx(torchs(partial(LinearLR, start_factor=1.0, end_factor=0.0, total_iters=30), 31))
    assert (rates[0], rates[30]) == (LR, 0)


@pytest.mark.parametrize("lowest", [0.0, 0.1])
def test_cosine_warms_up_linearly_from_the_lowest_rate_and_falls_back_to_it_along_half_a_cosine(lowest: float) -> None:
    schedule = Cosine(name="cosine", warmup_epochs=2, lowest_lr=lowest)
    rates = [lr_at(schedule, 0.4, step, 10, 6) for step in range(61)]
    assert rates[:20] == pytest.approx([lowest + (0.4 - lowest) * (step + 1) / 20 for step in range(20)])
    assert max(rates) == rates[20] == 0.4
    assert min(rates[20:]) == rates[60] == pytest.approx(lowest)
    by_torch = torchs(partial(CosineAnnealingLR, T_max=40, eta_min=lowest), 41, 0.4)
    assert rates[20:] == pytest.approx(by_torch, abs=1e-9)


@pytest.mark.parametrize("warmup", [0, 7])
def test_published_cosine_is_a_warm_up_by_hand_and_torchs_cosine_annealing_stepped_beyond_its_end(warmup: int) -> None:
    lr, lowest, epochs = 1e-4, 1e-6, 150
    schedule = Cosine(name="cosine", warmup_epochs=warmup, lowest_lr=lowest, convention="published")
    # as the document's own class does: the scheduler waits while the warm-up sets the rate
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr)
    cosine = CosineAnnealingLR(optimizer, T_max=10, eta_min=lowest)
    group, document = optimizer.param_groups[0], []
    for epoch in range(epochs):
        if warmup and epoch <= warmup:
            group["lr"] = (lr - lowest) * (epoch / warmup) + lowest
        elif epoch > 0:
            optimizer.step()
            cosine.step()
        document.append(group["lr"])
    assert per_epoch(schedule, epochs, lr) == pytest.approx(document, rel=1e-9)
    assert document[0] == (lowest if warmup else lr)
    assert [document[warmup + epochs_on] for epochs_on in (0, 20, 40)] == pytest.approx([lr] * 3)
    assert [document[warmup + epochs_on] for epochs_on in (10, 30, 50)] == pytest.approx([lowest] * 3)


def test_published_cosine_in_steps_ends_at_its_own_step_whatever_the_epochs() -> None:
    schedule = CosineInSteps(name="cosine_in_steps", warmup_steps=1500, total_steps=1992, convention="published")
    rates = [lr_at(schedule, 0.003, step, 16, 1000) for step in range(3000)]
    assert rates == [lr_at(schedule, 0.003, step, 16, 150) for step in range(3000)]
    assert rates[:1501] == pytest.approx([0.003 * step / 1500 for step in range(1501)])
    assert f"{rates[479]:.5f}" == "0.00096"  # the peak of the published thirty epochs, which are all warm-up
    assert rates[1746] == pytest.approx(0.0015)
    assert rates[1991] > 0
    assert set(rates[1992:]) == {0}


@pytest.mark.parametrize(("epochs", "written", "warmup"), [(30, 1500, 48), (1000, 1500, 1500), (1, 1500, 1), (1, 0, 0)])
def test_corrected_cosine_in_steps_ends_with_the_training_and_warms_up_for_at_most_a_tenth(
    epochs: int, written: int, warmup: int
) -> None:
    schedule = CosineInSteps(name="cosine_in_steps", warmup_steps=written)
    total = 16 * epochs
    rates = [lr_at(schedule, LR, step, 16, epochs) for step in range(total + 1)]
    assert rates[:warmup] == pytest.approx([LR * step / warmup for step in range(warmup)])
    assert rates.index(max(rates)) == warmup
    assert rates[warmup] == LR
    by_torch = torchs(partial(CosineAnnealingLR, T_max=total - warmup), total - warmup + 1)
    assert rates[warmup:] == pytest.approx(by_torch, rel=1e-6, abs=1e-9)
    assert rates[-1] == 0


@pytest.mark.parametrize(
    "written",
    [
        {"total_steps": 1992},
        {"convention": "published"},
        {"convention": "published", "total_steps": 1500},
    ],
)
def test_total_steps_belongs_to_the_published_schedule(written) -> None:
    with pytest.raises(ValidationError, match="total_steps"):
        CosineInSteps.model_validate({"name": "cosine_in_steps", **written})


def two_layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def one_update(config, rate: float) -> tuple[list[torch.Tensor], list[torch.Tensor], nn.Sequential]:
    """(weights before, gradients, network after) one update at a learning rate."""
    network = two_layers().double()
    before = [parameter.detach().clone() for parameter in network.parameters()]
    network(torch.ones(5, 3, dtype=torch.float64)).square().sum().backward()
    optimizer = build_optimizer(config, network)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    return before, [parameter.grad for parameter in network.parameters()], network


@pytest.mark.parametrize("decay_on", ["weights", "all"])
@pytest.mark.parametrize(
    ("decay_times", "share"), [("lr", 0.05 * 0.25), ("relative_lr", 0.05 * 0.25 / 0.5), ("nothing", 0.05)]
)
def test_adamw_decays_by_what_is_written_and_then_takes_adams_step(
    decay_on: str, decay_times: str, share: float
) -> None:
    config = AdamW(name="adamw", lr=0.5, weight_decay=0.05, decay_on=decay_on, decay_times=decay_times)
    before, gradients, network = one_update(config, 0.25)
    for old, gradient, new in zip(before, gradients, network.parameters(), strict=True):
        kept = 1 - share if old.ndim > 1 or decay_on == "all" else 1.0
        # Adam's first step is the sign of the gradient, but for epsilon
        expected = kept * old - 0.25 * gradient / (gradient.abs() + 1e-8)
        torch.testing.assert_close(new.detach(), expected, rtol=1e-12, atol=1e-12)


def test_a_decay_per_step_acts_at_learning_rate_zero_and_on_moving_parameters_only() -> None:
    config = AdamW(name="adamw", lr=0.5, weight_decay=0.05, decay_times="nothing", decay_on="all")
    before, _, network = one_update(config, 0.0)
    for old, new in zip(before, network.parameters(), strict=True):
        torch.testing.assert_close(new.detach(), 0.95 * old, rtol=1e-12, atol=0)
    network = two_layers()
    optimizer = build_optimizer(config, network)
    before = [parameter.detach().clone() for parameter in network.parameters()]
    network[0](torch.ones(5, 3)).sum().backward()
    optimizer.step()
    same = [torch.equal(old, new) for old, new in zip(before, network.parameters(), strict=True)]
    assert same == [False, False, True, True]


@pytest.mark.parametrize("decay_times", ["relative_lr", "nothing"])
def test_a_decay_that_takes_the_whole_weight_is_refused(decay_times: str) -> None:
    with pytest.raises(ValidationError, match=f"weight_decay must be below 1 with decay_times {decay_times}, got 1.0"):
        AdamW(name="adamw", lr=0.1, weight_decay=1.0, decay_times=decay_times)


@pytest.mark.parametrize(("config", "kind"), [
    (Sgd(name="sgd", lr=0.1, momentum=0.9, weight_decay=0.01), torch.optim.SGD),
    (Adam(name="adam", lr=0.1, weight_decay=0.01), torch.optim.Adam),
])  # fmt: skip
def test_sgd_and_adam_are_torchs_with_the_decay_in_the_gradient(config, kind) -> None:
    _, _, ours = one_update(config, 0.1)
    network = two_layers().double()
    network(torch.ones(5, 3, dtype=torch.float64)).square().sum().backward()
    kind(network.parameters(), **config.model_dump(exclude={"name"})).step()
    assert all(map(torch.equal, ours.parameters(), network.parameters()))


@pytest.mark.parametrize("config", [
    Sgd(name="sgd", lr=0.1), Adam(name="adam", lr=0.1), AdamW(name="adamw", lr=0.1, decay_times="nothing")
])  # fmt: skip
def test_frozen_parameters_are_not_given_to_the_optimizer(config) -> None:
    network = two_layers()
    network[0].requires_grad_(False)
    groups = build_optimizer(config, network).param_groups
    assert sorted(id(p) for group in groups for p in group["params"]) == sorted(map(id, network[1].parameters()))


def test_a_network_that_is_frozen_whole_cannot_be_trained() -> None:
    with pytest.raises(UserError, match="every parameter is frozen"):
        build_optimizer(Sgd(name="sgd", lr=0.1), two_layers().requires_grad_(False))


def test_a_training_ends_when_its_objective_has_not_improved_for_so_many_epochs() -> None:
    stopping = EarlyStopping(patience_epochs=3)
    assert [early_stop(4, epoch, stopping) for epoch in range(4, 9)] == [False, False, False, True, True]
    assert not early_stop(1, 1000, None)
