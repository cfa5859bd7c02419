"""A learner's update and its clipping against torch by hand; resuming it bit for bit."""

import pytest
import torch
from torch import nn

from kdtrain.config.training import Adam, AdamW, Clipping, Exponential, Sgd
from kdtrain.runtime.rng import generator
from kdtrain.training.learner import Learner, clip_gradients

OPTIMIZERS = [
    Sgd(name="sgd", lr=0.05),
    Sgd(name="sgd", lr=0.05, momentum=0.9),
    Adam(name="adam", lr=0.01, weight_decay=0.01),
    AdamW(name="adamw", lr=0.01, weight_decay=0.1),
    AdamW(name="adamw", lr=0.01, weight_decay=0.1, decay_times="nothing", decay_on="all"),
]


def network() -> nn.Sequential:
    """Frozen first layer, BatchNorm, and a last layer that the loss of `partial` leaves without a gradient."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2), nn.Linear(2, 2))
    layers[0].requires_grad_(False)
    return layers


def learner(optimizer, clipping: Clipping | None = None) -> Learner:
    return Learner(network().train(), optimizer, Exponential(name="exponential", factor=0.5), clipping, 4, 2)


def train(player: Learner, first: int, last: int, partial: bool = False) -> None:
    for step in range(first, last):
        images = torch.randn(5, 3, generator=generator(0, "images", step))
        layers = player.module[:3] if partial else player.module
        player.update(layers(images).square().sum(), step)


def gradients(*values: list[float]) -> list[nn.Parameter]:
    parameters = [nn.Parameter(torch.zeros(len(each))) for each in values]
    for parameter, each in zip(parameters, values, strict=True):
        parameter.grad = torch.tensor(each)
    return parameters


def test_clipping_over_all_scales_every_gradient_by_one_factor() -> None:
    parameters = gradients([3.0, 4.0], [12.0])  # together 13
    clip_gradients(parameters, Clipping(norm=1.0, over="all"))
    torch.testing.assert_close(parameters[0].grad, torch.tensor([3.0, 4.0]) / 13)
    torch.testing.assert_close(parameters[1].grad, torch.tensor([12.0]) / 13)


def test_clipping_each_tensor_scales_the_long_ones_alone() -> None:
    parameters = [*gradients([3.0, 4.0], [0.6, 0.0], [0.0, 0.0]), nn.Parameter(torch.zeros(2))]
    clip_gradients(parameters, Clipping(norm=1.0, over="tensor"))
    torch.testing.assert_close(parameters[0].grad, torch.tensor([0.6, 0.8]))
    assert parameters[1].grad.tolist() == pytest.approx([0.6, 0.0])
    assert parameters[2].grad.tolist() == [0.0, 0.0]
    assert parameters[3].grad is None


@pytest.mark.parametrize("over", ["all", "tensor"])
def test_gradients_within_the_norm_are_left_alone_and_one_that_is_no_number_stays_one(over: str) -> None:
    parameters = gradients([0.3, 0.4], [-0.2])
    before = [parameter.grad.clone() for parameter in parameters]
    clip_gradients(parameters, Clipping(norm=1.0, over=over))
    assert all(torch.equal(parameter.grad, old) for parameter, old in zip(parameters, before, strict=True))
    (broken,) = gradients([float("nan"), 1.0])
    clip_gradients([broken], Clipping(norm=1.0, over=over))
    assert broken.grad.isnan().all()


@pytest.mark.parametrize("clipping", [None, Clipping(norm=0.1), Clipping(norm=0.1, over="tensor")])
def test_an_update_is_the_clipped_gradient_times_the_rate_of_its_step(clipping: Clipping | None) -> None:
    player, by_hand = learner(Sgd(name="sgd", lr=0.05), clipping), network().train()
    train(player, 4, 5)  # the first step of epoch 2 from 0
    by_hand(torch.randn(5, 3, generator=generator(0, "images", 4))).square().sum().backward()
    moving = [parameter for parameter in by_hand.parameters() if parameter.grad is not None]
    total = torch.stack([parameter.grad.norm() for parameter in moving]).norm()
    for parameter in moving:
        norm = total if clipping is None or clipping.over == "all" else parameter.grad.norm()
        factor = 1.0 if clipping is None else min(1.0, clipping.norm / norm)
        parameter.data -= 0.05 * 0.5**2 * factor * parameter.grad
    for ours, theirs in zip(player.module.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert total > 1


@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
def test_a_resumed_learner_goes_on_bit_for_bit(optimizer, partial: bool) -> None:
    straight = learner(optimizer, Clipping(norm=1.0))
    train(straight, 0, 7, partial)
    first = learner(optimizer, Clipping(norm=1.0))
    train(first, 0, 3, partial)
    saved = {name: value.clone() for name, value in first.state_tensors().items()}
    resumed = learner(optimizer, Clipping(norm=1.0))
    with torch.no_grad():
        resumed.module[2].weight.fill_(9.0)
    resumed.load_state_tensors(saved)
    train(resumed, 3, 7, partial)
    ours, theirs = resumed.state_tensors(), straight.state_tensors()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert torch.equal(resumed.module[0].weight, network()[0].weight)


def test_optimizer_state_is_saved_by_the_names_of_the_parameters_that_train() -> None:
    player = learner(AdamW(name="adamw", lr=0.01, weight_decay=0.1))  # its groups reorder the parameters
    train(player, 0, 1)
    owned = {name.split(".", 1)[1].rsplit(".", 1)[0] for name in player.state_tensors() if name.startswith("optimizer")}
    assert owned == {name for name, parameter in player.module.named_parameters() if parameter.requires_grad}
    for name, parameter in player.module.named_parameters():
        if parameter.requires_grad:
            assert player.state_tensors()[f"optimizer.{name}.exp_avg"].shape == parameter.shape
