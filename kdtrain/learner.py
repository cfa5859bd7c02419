"""Learner: a module with its optimizer and learning-rate schedule; what is stepped, and what is saved of it."""

from typing import Any

from torch import Tensor, nn

from kdtrain.config.recipe import Recipe
from kdtrain.optim import build_optimizer, lr_at


class Learner:
    def __init__(self, module: nn.Module, recipe: Recipe, steps_per_epoch: int) -> None:
        self.module = module
        self.recipe = recipe
        self.steps_per_epoch = steps_per_epoch
        self.optimizer = build_optimizer(recipe.optimizer, module)

    def lr(self, step: int) -> float:
        """The learning rate of update `step`, from 0."""
        recipe = self.recipe
        return lr_at(recipe.lr_schedule, recipe.optimizer.lr, step, self.steps_per_epoch, recipe.epochs)

    def update(self, loss: Tensor, step: int) -> None:
        """One backward and one optimizer update; under DDP the gradients of all ranks are averaged on the way."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr(step)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()

    def state_tensors(self) -> dict[str, Tensor]:
        """Weights and optimizer state by name; the schedule has none."""
        tensors = {f"module.{name}": value for name, value in self.module.state_dict().items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            for key, value in state.items():
                if value is not None:
                    tensors[f"optimizer.{index}.{key}"] = value
        return tensors

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        module = {name.removeprefix("module."): value for name, value in tensors.items() if name.startswith("module.")}
        self.module.load_state_dict(module)
        state: dict[int, dict[str, Any]] = {}
        for name, value in tensors.items():
            if name.startswith("optimizer."):
                _, index, key = name.split(".")
                state.setdefault(int(index), {})[key] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})
