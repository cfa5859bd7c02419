"""Learner: a module with its optimizer, clipping and learning-rate schedule; what is stepped, what is saved of it."""

from typing import Any

import torch
from torch import Tensor, nn

from kdtrain.config.training import Clipping, LrSchedule, Optimizer
from kdtrain.training.optimizers import build_optimizer, lr_at


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
        scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        """scaler: for float16, whose small gradients would vanish (Micikevicius et al. 2018, arXiv:1710.03740)."""
        self.module = module
        self.scaler = scaler
        self.clipping = clipping
        self.optimizer = build_optimizer(optimizer, module)
        self._trained = self._parameters()
        self._schedule = (lr_schedule, optimizer.lr, steps_per_epoch, epochs)

    def lr(self, step: int) -> float:
        """The learning rate of update `step`, from 0."""
        schedule, lr, steps_per_epoch, epochs = self._schedule
        return lr_at(schedule, lr, step, steps_per_epoch, epochs)

    def update(self, loss: Tensor, step: int) -> Tensor | None:
        """One backward and one optimizer update; under DDP the gradients of all ranks are averaged on the way.

        Clipping comes after the average, so every rank scales by the same norm. With a scaler: 1 where an overflow
        made it leave the weights alone, on all ranks alike, else 0.
        """
        lr = self.lr(step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        for parameter in self._trained:
            parameter.grad = None
        if self.scaler is None:
            loss.backward()
            self._clip()
            self.optimizer.step()
            return None
        one = torch.ones((), device=loss.device)
        before = self.scaler.scale(one)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        self._clip()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return (self.scaler.scale(one) < before).float()  # it falls after an overflow, and only then

    def _clip(self) -> None:
        if self.clipping is not None:
            clip_gradients(self._parameters(), self.clipping)

    def state_tensors(self) -> dict[str, Tensor]:
        """Weights and optimizer state by name, `optimizer.<parameter>.<key>`; the schedule has none."""
        tensors = {f"module.{name}": value for name, value in self.module.state_dict().items()}
        names = self._names()
        for index, state in self.optimizer.state_dict()["state"].items():
            for key, value in state.items():
                if value is not None:
                    tensors[f"optimizer.{names[index]}.{key}"] = value
        if self.scaler is not None:
            state = self.scaler.state_dict()
            tensors |= {f"scaler.{key}": torch.tensor(state[key], dtype=torch.float64) for key in SCALER_STATE}
        return tensors

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Continues from `state_tensors()` of a learner built alike: what is frozen there is frozen here."""
        module = {name.removeprefix("module."): value for name, value in tensors.items() if name.startswith("module.")}
        self.module.load_state_dict(module)
        index_of, parameters = {name: index for index, name in enumerate(self._names())}, self._parameters()
        state: dict[int, dict[str, Any]] = {}
        for name, value in tensors.items():
            if name.startswith("optimizer."):
                parameter, _, key = name.removeprefix("optimizer.").rpartition(".")
                state.setdefault(index_of[parameter], {})[key] = _laid_out_as(parameters[index_of[parameter]], value)
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})
        if self.scaler is not None:
            saved = {key: kind(tensors[f"scaler.{key}"].item()) for key, kind in SCALER_STATE.items()}
            self.scaler.load_state_dict({**self.scaler.state_dict(), **saved})

    def _parameters(self) -> list[nn.Parameter]:
        """Those that are trained, in the order in which the optimizer numbers them: group after group."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def _names(self) -> list[str]:
        """The names of `_parameters()`."""
        name_of = {id(parameter): name for name, parameter in self.module.named_parameters()}
        return [name_of[id(parameter)] for parameter in self._parameters()]


SCALER_STATE = {"scale": float, "_growth_tracker": int}
"""What of a GradScaler's state changes in training."""


def _laid_out_as(parameter: Tensor, saved: Tensor) -> Tensor:
    """A file keeps no memory format (channels_last); the optimizer's state has its parameter's."""
    return torch.empty_like(parameter).copy_(saved) if saved.shape == parameter.shape else saved


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
