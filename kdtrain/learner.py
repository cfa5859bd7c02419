"""Learner: a module with its optimizer, clipping and learning-rate schedule; what is stepped, what is saved of it."""

from typing import Any

import torch
from torch import Tensor, nn

from kdtrain.config.training import Clipping, LrSchedule, Optimizer
from kdtrain.optim import build_optimizer, lr_at


class Learner:
    """One player: the distiller, or the critic of an adversarial method."""

    def __init__(
        self,
        module: nn.Module,
        optimizer: Optimizer,
        lr_schedule: LrSchedule,
        clipping: Clipping | None,
        epochs: int,
        steps_per_epoch: int,
    ) -> None:
        self.module = module
        self.clipping = clipping
        self.optimizer = build_optimizer(optimizer, module)
        self._schedule = (lr_schedule, optimizer.lr, steps_per_epoch, epochs)

    def lr(self, step: int) -> float:
        """The learning rate of update `step`, from 0."""
        schedule, lr, steps_per_epoch, epochs = self._schedule
        return lr_at(schedule, lr, step, steps_per_epoch, epochs)

    def update(self, loss: Tensor, step: int) -> None:
        """One backward and one optimizer update; under DDP the gradients of all ranks are averaged on the way.

        Clipping comes after the average, so every rank scales by the same norm. Nothing waits for the device.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr(step)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.clipping is not None:
            clip_gradients(self._parameters(), self.clipping)
        self.optimizer.step()

    def state_tensors(self) -> dict[str, Tensor]:
        """Weights and optimizer state by name, `optimizer.<parameter>.<key>`; the schedule has none."""
        tensors = {f"module.{name}": value for name, value in self.module.state_dict().items()}
        names = self._names()
        for index, state in self.optimizer.state_dict()["state"].items():
            for key, value in state.items():
                if value is not None:
                    tensors[f"optimizer.{names[index]}.{key}"] = value
        return tensors

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Continues from `state_tensors()` of a learner built alike: what is frozen there is frozen here."""
        module = {name.removeprefix("module."): value for name, value in tensors.items() if name.startswith("module.")}
        self.module.load_state_dict(module)
        index_of = {name: index for index, name in enumerate(self._names())}
        state: dict[int, dict[str, Any]] = {}
        for name, value in tensors.items():
            if name.startswith("optimizer."):
                parameter, _, key = name.removeprefix("optimizer.").rpartition(".")
                state.setdefault(index_of[parameter], {})[key] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})

    def _parameters(self) -> list[nn.Parameter]:
        """Those that are trained, in the order in which the optimizer numbers them: group after group."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def _names(self) -> list[str]:
        """The names of `_parameters()`."""
        name_of = {id(parameter): name for name, parameter in self.module.named_parameters()}
        return [name_of[id(parameter)] for parameter in self._parameters()]


def clip_gradients(parameters: list[nn.Parameter], clipping: Clipping) -> None:
    """Scales gradients down to an L2 norm of at most `clipping.norm`: of all together (Pascanu et al. 2013,
    arXiv:1211.5063), or of each tensor by itself. The norms stay on the device."""
    if clipping.over == "all":
        torch.nn.utils.clip_grad_norm_(parameters, clipping.norm)
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norms = torch.stack(torch._foreach_norm(gradients))
    factors = (clipping.norm / norms).clamp(max=1.0)  # a zero gradient divides to infinity, so its factor is 1
    torch._foreach_mul_(gradients, factors.unbind())
