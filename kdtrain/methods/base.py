"""What every method is: from the outputs of two networks and a target to named, weighted loss terms."""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Outputs:
    """Of one network for one batch: logits [N, K] and features {stage: [N, C, H, W]}."""

    logits: Tensor
    features: dict[str, Tensor] = field(default_factory=dict)


class Term(NamedTuple):
    """One part of the loss: its mean over the N images in nats, and what it counts. Weight 0: only shown."""

    value: Tensor
    weight: float


class Criterion(nn.Module):
    """(student Outputs, teacher Outputs or None, target [N]) -> {name: Term}; the loss is the weighted sum."""

    def forward(self, student: Outputs, teacher: Outputs | None, target: Tensor) -> dict[str, Term]:
        raise NotImplementedError


def cross_entropy(logits_NK: Tensor, target_N: Tensor, label_smoothing: float) -> Tensor:
    """Hard-label cross-entropy, mean over N, in nats and float32; smoothing as Szegedy et al. 2016, sec. 7."""
    return functional.cross_entropy(at_least_float32(logits_NK), target_N, label_smoothing=label_smoothing)


def at_least_float32(values: Tensor) -> Tensor:
    """What a loss is computed in, inside autocast too; float64 is left alone, so that a loss can be checked in it."""
    return values if values.dtype == torch.float64 else values.float()


def weighted_sum(terms: dict[str, Term]) -> Tensor:
    """The loss that is differentiated."""
    return torch.stack([term.weight * term.value for term in terms.values() if term.weight]).sum()
