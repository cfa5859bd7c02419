"""The shares of data, teacher, student, optimizer and the rest in the time of kdtrain's steps."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch

import kdtrain.training.learner
import kdtrain.training.loop
from kdtrain.teacher.network import Teacher
from kdtrain.training.state import TrainState

PHASES = ("data", "teacher", "student", "optimizer")


class Stopwatch:
    """Seconds by phase: CPU time of the process, or on a GPU the time of its stream between two events."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.spans: dict[str, list[tuple[Any, Any]]] = defaultdict(list)

    def now(self) -> Any:
        if self.device.type == "cpu":
            return time.process_time()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    @contextmanager
    def span(self, phase: str) -> Iterator[None]:
        started = self.now()
        yield
        self.spans[phase].append((started, self.now()))

    def timed(self, phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            with self.span(phase):
                return function(*arguments, **named)

        return call

    def seconds(self, phase: str) -> float:
        if self.device.type == "cpu":
            return float(sum(ended - started for started, ended in self.spans[phase]))
        torch.cuda.synchronize()
        return float(sum(started.elapsed_time(ended) for started, ended in self.spans[phase])) / 1e3


def shares(state: TrainState, epoch: Callable[[], Any]) -> dict[str, float]:
    """Return each phase's share of the time of an epoch.

    `student` is forward, loss and backward; `rest` is the loop itself. epoch() trains one epoch of `state`.
    """
    watch = Stopwatch(state.device)
    own: list[tuple[Any, str, str]] = [
        (kdtrain.training.loop, "load_batch", "data"),
        (state.distiller, "forward", "student"),
        (torch.Tensor, "backward", "student"),
        (kdtrain.training.learner, "clip_gradients", "optimizer"),
        (state.learner.optimizer, "step", "optimizer"),
    ]
    answer = Teacher.__call__

    def answered(teacher: Teacher, images: torch.Tensor) -> Any:
        with watch.span("teacher"):
            return answer(teacher, images)

    with ExitStack() as stack:
        stack.enter_context(patch.object(Teacher, "__call__", answered))
        for owner, name, phase in own:
            stack.enter_context(patch.object(owner, name, watch.timed(phase, getattr(owner, name))))
        with watch.span("epoch"):
            epoch()
    whole = watch.seconds("epoch")
    parts = {phase: watch.seconds(phase) / whole for phase in PHASES}
    return {**parts, "rest": 1 - sum(parts.values())}
