"""The shares of data, teacher, student, optimizer and the rest in the time of kdtrain's steps."""

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import torch

import kdtrain.training.learner
import kdtrain.training.loop
from kdtrain.teacher.network import Teacher
from kdtrain.training.state import TrainState

PHASES = ("data", "teacher", "student", "optimizer")


def shares(state: TrainState, epoch: Callable[[], Any], now: Callable[[], float]) -> dict[str, float]:
    """Return each phase's share of the time of an epoch: epoch() trains `state`, and now() is a time in s.

    `student` is forward, loss and backward; `rest` is the loop itself.
    """
    seconds: Counter[str] = Counter()

    def timed(phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            started = now()
            result = function(*arguments, **named)
            seconds[phase] += now() - started  # type: ignore[assignment]
            return result

        return call

    own: list[tuple[Any, str, str]] = [
        (kdtrain.training.loop, "load_batch", "data"),
        (state.distiller, "forward", "student"),
        (torch.Tensor, "backward", "student"),
        (kdtrain.training.learner, "clip_gradients", "optimizer"),
        (state.learner.optimizer, "step", "optimizer"),
    ]
    answer = timed("teacher", Teacher.__call__)
    with ExitStack() as stack:  # a special method must be a function to be bound
        stack.enter_context(patch.object(Teacher, "__call__", lambda teacher, images: answer(teacher, images)))
        for owner, name, phase in own:
            stack.enter_context(patch.object(owner, name, timed(phase, getattr(owner, name))))
        timed("epoch", epoch)()
    parts = {phase: seconds[phase] / seconds["epoch"] for phase in PHASES}
    return {**parts, "rest": 1 - sum(parts.values())}
