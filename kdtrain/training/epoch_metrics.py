"""What an epoch has given so far: each loss term of each step, over all ranks. It outlives a cut in mid-epoch."""

import math
import time
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kdtrain.runtime import distributed
from kdtrain.trials.outcome import SKIPPED

Metrics = dict[str, float]

READ_EVERY_STEPS = 256
"""So many steps wait on the device before they are read: a number that is none ends a long epoch early."""


class NonFiniteLoss(Exception):
    """The loss stopped being a number: the trial has failed, and says where and which term."""


@dataclass(frozen=True)
class _Waiting:
    """Of one step, not yet read: this rank's means over its `own` images, on the device, and the global batch's
    images."""

    step: int
    names: tuple[str, ...]
    means: list[Tensor]
    own: int
    images: int


@dataclass
class EpochProgress:
    """One epoch's steps done, what they have cost, and the terms of its steps.

    A step only leaves a small tensor on the device: nothing waits for it until `read`.
    """

    epoch: int
    steps: int = 0
    spent: dict[str, float] = field(default_factory=dict)  # seconds, and what `mark` and `advance` were told of
    terms: dict[str, list[float]] = field(default_factory=dict)  # each step's sum over the images of the global batch
    images: dict[str, int] = field(default_factory=dict)  # how many images these sums are over
    waiting: list[_Waiting] = field(default_factory=list)

    def add(self, step: int, terms: dict[str, Tensor], images: int) -> None:
        """After an update: its terms, means over this rank's share of the global batch's images."""
        own = distributed.share_size(images)
        self.waiting.append(_Waiting(step, tuple(terms), [value.detach() for value in terms.values()], own, images))
        self.steps += 1
        if len(self.waiting) == READ_EVERY_STEPS:
            self.read()

    def read(self) -> None:
        """Adds up the waiting steps over all ranks, the same way whenever it is called.

        Raises NonFiniteLoss, on all ranks alike, naming the first step in which a term was NaN or infinite.
        """
        waiting, self.waiting = self.waiting, []
        if not waiting:
            return
        counts = torch.tensor([each.own for each in waiting for _ in each.names], dtype=torch.float64)
        means = torch.stack([value for each in waiting for value in each.means]).double()
        sums = iter(_over_ranks(means * counts.to(means.device)))
        for each in waiting:
            found = {name: next(sums) for name in each.names}
            _require_finite(found, each, self.epoch)
            for name, value in found.items():
                self.terms.setdefault(name, []).append(value)
                self.images[name] = self.images.get(name, 0) + each.images

    def mark(self, so_far: dict[str, float]) -> None:
        """From here seconds are counted, and the growth of counters that the training has had so far."""
        self._mark = {**so_far, "seconds": time.perf_counter()}

    def advance(self, so_far: dict[str, float]) -> None:
        """Counts up to here and reads the waiting steps."""
        before = self._mark
        self.mark(so_far)
        self.charge({name: value - before[name] for name, value in self._mark.items()})
        self.read()

    def charge(self, costs: dict[str, float]) -> None:
        """Adds what was spent on this epoch before, beside what is counted."""
        for name, value in costs.items():
            self.spent[name] = self.spent.get(name, 0) + value

    def means(self) -> dict[str, float]:
        """Each term's mean over the images that it was computed for, and how many steps were skipped.

        Raises NonFiniteLoss where the scaler skipped every step: then nothing was learned.
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
        """The terms read so far; nothing may wait."""
        assert not self.waiting
        return {name: torch.tensor(values, dtype=torch.float64) for name, values in self.terms.items()}


def _over_ranks(sums: Tensor) -> list[float]:
    """The sums of all ranks, added in the order of ranks: how many are read at once changes no bit."""
    rows = torch.zeros(distributed.size(), len(sums), dtype=sums.dtype, device=sums.device)
    rows[distributed.rank()] = sums
    values: list[float] = distributed.sum_over_ranks(rows).sum(0).tolist()
    return values


def _require_finite(found: dict[str, float], of: _Waiting, epoch: int) -> None:
    if all(map(math.isfinite, found.values())):
        return
    shown = ", ".join(f"train/{name} is {value / of.images:.4g}" for name, value in found.items() if name != SKIPPED)
    raise NonFiniteLoss(f"epoch {epoch + 1}, step {of.step}: {shown}")
