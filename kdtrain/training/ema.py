"""Exponential moving average of a network's weights, evaluated in place of the trained network."""

import copy
import math

import torch
from torch import Tensor, nn

from kdtrain.config.training import Ema


class ModelEma:
    """A copy of a network, in evaluation mode, whose weights follow those of the trained network.

    v <- d * v + (1 - d) * w for parameters and floating-point buffers (BatchNorm statistics), d from `decay_at`;
    integer buffers are copied.
    """

    def __init__(self, module: nn.Module, config: Ema) -> None:
        self.module = copy.deepcopy(module).eval().requires_grad_(False)
        self.config = config
        self.updates = 0

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Follow the trained network; call it after every optimizer update. Nothing waits for the device."""
        self.updates += 1
        own, current = self.module.state_dict(), module.state_dict()
        floating = [name for name, value in own.items() if value.is_floating_point()]
        decay = decay_at(self.config, self.updates)
        torch._foreach_lerp_([own[name] for name in floating], [current[name] for name in floating], 1 - decay)
        for name in own.keys() - set(floating):
            own[name].copy_(current[name])

    def state_tensors(self) -> dict[str, Tensor]:
        """Return the averaged weights by name, and the number of updates."""
        tensors = {f"module.{name}": value for name, value in self.module.state_dict().items()}
        return {**tensors, "updates": torch.tensor(self.updates)}

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Continue from `state_tensors()`, bit for bit."""
        module = {name.removeprefix("module."): value for name, value in tensors.items() if name.startswith("module.")}
        self.module.load_state_dict(module)
        self.updates = int(tensors["updates"])


def decay_at(config: Ema, updates: int) -> float:
    """Return decay * (1 - exp(-updates / ramp_updates)): early weights, which are far off, are soon forgotten."""
    return config.decay * (1 - math.exp(-updates / config.ramp_updates))
