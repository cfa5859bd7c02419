"""Learner: a module with its optimizer, gradient clipping and learning-rate schedule."""

from typing import Any

import torch
from torch import Tensor, nn

from kdtrain.config.training import Clipping, LrSchedule, Optimizer
from kdtrain.training.optimizers import build_optimizer, lr_at


class Learner:
    """One player of a training: the distiller, or the critic of an adversarial method.

    A schedule is a function of the step, without state. The scaler is for float16, whose small gradients would vanish
    (Micikevicius et al. 2018, arXiv:1710.03740).
    """

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
        self.module = module
        self.scaler = scaler
        self.clipping = clipping
        self.optimizer = build_optimizer(optimizer, module)
        self._trained = self._parameters()
        self._schedule = (lr_schedule, optimizer.lr, steps_per_epoch, epochs)

    def lr(self, step: int) -> float:
        """Return the learning rate of update `step`, counted from 0."""
        schedule, lr, steps_per_epoch, epochs = self._schedule
        return lr_at(schedule, lr, step, steps_per_epoch, epochs)

    def update(self, loss: Tensor, step: int) -> Tensor | None:
        """Make one backward pass and one optimizer update; clip after DDP has averaged, so that all ranks scale alike.

        Return, with a scaler, 1 if an overflow made it skip the update, on all ranks alike, else 0; otherwise None.
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
        return (self.scaler.scale(one) < before).float()  # the scale falls after an overflow only

    def _clip(self) -> None:
        if self.clipping is not None:
            clip_gradients(self._parameters(), self.clipping)

    def state_tensors(self) -> dict[str, Tensor]:
        """Return state by name: `module.<name>`, `optimizer.<parameter>.<key>`, `scaler.<key>`."""
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
        """Continue from `state_tensors()` of a learner with the same frozen parameters."""
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
        """Return the trained parameters in the order in which the optimizer numbers them: group after group."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def _names(self) -> list[str]:
        """Return the names of `_parameters()`."""
        name_of = {id(parameter): name for name, parameter in self.module.named_parameters()}
        return [name_of[id(parameter)] for parameter in self._parameters()]


SCALER_STATE = {"scale": float, "_growth_tracker": int}
"""The part of a GradScaler's state that changes in training."""


def _laid_out_as(parameter: Tensor, saved: Tensor) -> Tensor:
    """Return the saved state in its parameter's memory format, which a safetensors file does not keep."""
    return torch.empty_like(parameter).copy_(saved) if saved.shape == parameter.shape else saved


def clip_gradients(parameters: list[nn.Parameter], clipping: Clipping) -> None:
    """Scale gradients down to an L2 norm of at most `clipping.norm`.

    The norm is that of all gradients together (Pascanu et al. 2013, arXiv:1211.5063) or of each tensor. Norms stay on
    the device.
    """
    if clipping.over == "all":
        torch.nn.utils.clip_grad_norm_(parameters, clipping.norm)
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norms = torch.stack(torch._foreach_norm(gradients))
    factors = (clipping.norm / norms).clamp(max=1.0)  # for a zero gradient: min(inf, 1) = 1
    torch._foreach_mul_(gradients, factors.unbind())
