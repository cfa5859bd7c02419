"""The moving average against its formula by hand."""

import copy
import math

import pytest
import torch
from torch import nn

from kdtrain.config.training import Ema
from kdtrain.training.ema import ModelEma, decay_at

EMA = Ema(decay=0.9, ramp_updates=3.0)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).train()


def moved(module: nn.Module, step: int) -> nn.Module:
    """The network after some training: other weights, other statistics, one batch more counted."""
    torch.manual_seed(100 + step)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter))
        module(torch.randn(8, 3))
    return module


def test_the_decay_rises_from_near_zero_to_the_one_written() -> None:
    default = Ema()
    assert decay_at(default, 1) == pytest.approx(0.9999 / 2000, rel=1e-3)
    assert decay_at(default, 2000) == pytest.approx(0.9999 * (1 - 1 / math.e))
    assert decay_at(default, 100_000) == pytest.approx(0.9999)
    assert decay_at(EMA, 2) == 0.9 * (1 - math.exp(-2 / 3))


def test_weights_and_statistics_are_averaged_and_counters_copied() -> None:
    module = network()
    average = ModelEma(module, EMA)
    expected = {name: value.double() for name, value in module.state_dict().items()}
    for step in range(1, 6):
        average.update(moved(module, step))
        decay = 0.9 * (1 - math.exp(-step / 3))
        for name, value in module.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * value.double()
    averaged = average.module.state_dict()
    assert averaged["1.num_batches_tracked"] == module[1].num_batches_tracked == 5
    for name in averaged.keys() - {"1.num_batches_tracked"}:
        torch.testing.assert_close(averaged[name].double(), expected[name], rtol=1e-5, atol=1e-6)
        assert not torch.equal(averaged[name], module.state_dict()[name])


def test_the_average_shares_nothing_with_the_network_and_never_trains() -> None:
    module = network()
    average = ModelEma(module, EMA)
    module[0].weight.requires_grad_(False)
    before = copy.deepcopy(average.module.state_dict())
    moved(module, 1)
    module.train()
    assert all(torch.equal(value, before[name]) for name, value in average.module.state_dict().items())
    assert not any(each.training for each in average.module.modules())
    assert not any(parameter.requires_grad for parameter in average.module.parameters())
    assert all(parameter.requires_grad for parameter in module[2].parameters())
