"""Metrics of an epoch in progress: each loss term of each step, over all ranks."""

import math
import time
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kdtrain.runtime import distributed
from kdtrain.runtime.device import to_device
from kdtrain.trials.outcome import SKIPPED

Metrics = dict[str, float]

READ_EVERY_STEPS = 256
"""Steps that stay on the device before they are read. A non-finite loss then ends a long epoch early."""


class NonFiniteLoss(Exception):
    """A loss term is NaN or infinite. The message names epoch, step and term."""


@dataclass(frozen=True)
class _Waiting:
    """The terms of one step that are not read yet: means over this rank's `own` images, and the global batch's size."""

    step: int
    names: tuple[str, ...]
    means: list[Tensor]
    own: int
    images: int


@dataclass
class EpochProgress:
    """The steps of an epoch (from 0) that are done, their costs, and their loss terms.

    A step leaves a small tensor on the device; nothing waits for it until `read`. `spent` holds seconds and the
    counters that `mark` and `advance` got; `terms` each step's sums over the global batch, and `images` their number.
    """

    epoch: int
    steps: int = 0
    spent: dict[str, float] = field(default_factory=dict)
    terms: dict[str, list[float]] = field(default_factory=dict)
    images: dict[str, int] = field(default_factory=dict)
    waiting: list[_Waiting] = field(default_factory=list)

    def add(self, step: int, terms: dict[str, Tensor], images: int) -> None:
        """Add an update's terms, means over this rank's share of the `images` of the global batch."""
        own = distributed.share_size(images)
        self.waiting.append(_Waiting(step, tuple(terms), [value.detach() for value in terms.values()], own, images))
        self.steps += 1
        if len(self.waiting) == READ_EVERY_STEPS:
            self.read()

    def read(self) -> None:
        """Sum the waiting steps over all ranks; NonFiniteLoss, raised on all ranks, names the first bad step.

        The sums do not depend on when it is called.
        """
        waiting, self.waiting = self.waiting, []
        if not waiting:
            return
        counts = torch.tensor([each.own for each in waiting for _ in each.names], dtype=torch.float64)
        means = torch.stack([value for each in waiting for value in each.means])
        means = (means.cpu() if means.device.type == "mps" else means).double()  # MPS has no float64
        sums = iter(_over_ranks(means * to_device(counts, means.device)))
        for each in waiting:
            found = {name: next(sums) for name in each.names}
            _require_finite(found, each, self.epoch)
            for name, value in found.items():
                self.terms.setdefault(name, []).append(value)
                self.images[name] = self.images.get(name, 0) + each.images

    def mark(self, so_far: dict[str, float]) -> None:
        """Start counting seconds and the growth of the training's counters `so_far`."""
        self._mark = {**so_far, "seconds": time.perf_counter()}

    def advance(self, so_far: dict[str, float]) -> None:
        """Add the costs since the last mark and read the waiting steps."""
        before = self._mark
        self.mark(so_far)
        self.charge({name: value - before[name] for name, value in self._mark.items()})
        self.read()

    def charge(self, costs: dict[str, float]) -> None:
        """Add costs to this epoch."""
        for name, value in costs.items():
            self.spent[name] = self.spent.get(name, 0) + value

    def means(self) -> dict[str, float]:
        """Return each term's mean over the images that it was computed for, and the number of skipped steps.

        Raises:
            NonFiniteLoss: A term is not finite, or the scaler skipped every step, so that nothing was learned.
        """
        self.read()
        means = {f"train/{name}": math.fsum(values) / self.images[name] for name, values in self.terms.items()}
        skipped = means.pop(f"train/{SKIPPED}", None)
        if skipped is None:
            return means
        count = math.fsum(value > 0 for value in self.terms[SKIPPED])
        if count == len(self.terms[SKIPPED]):
            raise NonFiniteLoss(
                f"epoch {self.epoch + 1}: every one of its {count:.0f} steps overflowed in float16 and was skipped"
            )
        return {**means, SKIPPED: count}

    def state_tensors(self) -> dict[str, Tensor]:
        """Return the terms read so far. No step may be waiting."""
        assert not self.waiting
        return {name: torch.tensor(values, dtype=torch.float64) for name, values in self.terms.items()}


def _over_ranks(sums: Tensor) -> list[float]:
    """Sum over ranks in the order of ranks, so that the number of steps read at once changes no bit."""
    rows = torch.zeros(distributed.size(), len(sums), dtype=sums.dtype, device=sums.device)
    rows[distributed.rank()] = sums
    values: list[float] = distributed.sum_over_ranks(rows).sum(0).tolist()
    return values


def _require_finite(found: dict[str, float], of: _Waiting, epoch: int) -> None:
    if all(map(math.isfinite, found.values())):
        return
    shown = ", ".join(f"train/{name} is {value / of.images:.4g}" for name, value in found.items() if name != SKIPPED)
    raise NonFiniteLoss(f"epoch {epoch + 1}, step {of.step}: {shown}")
