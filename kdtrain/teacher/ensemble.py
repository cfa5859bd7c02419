"""Several teachers in the place of one: the mean of their outputs. M teachers, N images, K classes.

Each member's outputs are computed live or read from the cache as if it were alone; they are combined after that, since
temperature and weights may be searched. So trials with other temperatures and weights share the cached rows.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from kdtrain.config.recipe import Recipe
from kdtrain.methods.base import Batch, Outputs, at_least_float32
from kdtrain.teacher.outputs import TeacherOutputs


def mean_of_probabilities(logits_MNK: Tensor, shares: Sequence[float], temperature: float) -> Tensor:
    """Return T log(sum_m w_m softmax(t_m / T)) [N, K] in at least float32.

    softmax(. / T) of it is the weighted mean of the teachers' softened probabilities. T is that of the method, so that
    each method gets the mean in the place of one teacher's probabilities.

    Args:
        logits_MNK: logits t_m of each teacher.
        shares: weights w_m, whose sum is 1.
        temperature: T > 0.

    Source:
        Hinton et al. 2015, arXiv:1503.02531, section 1: an ensemble's soft targets are the arithmetic mean of its
        members' distributions, or their geometric mean, see `mean_of_logits`.
    """
    log_p_MNK = functional.log_softmax(at_least_float32(logits_MNK) / temperature, dim=2)
    return temperature * torch.logsumexp(log_p_MNK + _by_teacher(shares, log_p_MNK).log(), dim=0)


def mean_of_logits(logits_MNK: Tensor, shares: Sequence[float]) -> Tensor:
    """Return sum_m w_m t_m [N, K] in at least float32; arguments as for `mean_of_probabilities`.

    softmax(. / T) of it is the geometric mean of the teachers' softened probabilities, normalised, at any T.

    Source:
        Hinton et al. 2015, arXiv:1503.02531, section 1; with the weights of a learned gate Lan et al. 2018,
        arXiv:1806.04606, section 3.
    """
    logits_MNK = at_least_float32(logits_MNK)
    return (_by_teacher(shares, logits_MNK) * logits_MNK).sum(dim=0)


def _by_teacher(shares: Sequence[float], like_MNK: Tensor) -> Tensor:
    return torch.tensor(shares, dtype=like_MNK.dtype, device=like_MNK.device)[:, None, None]


def combined_logits(recipe: Recipe, logits: Sequence[Tensor]) -> Tensor:
    """Return the logits [N, K] that a recipe's method gets, from those of each of its teachers; of one, its own.

    The temperature of a method is its field `temperature`; without one it is 1.
    """
    if recipe.ensemble is None:
        (own,) = logits
        return own
    logits_MNK, shares = torch.stack(list(logits)), recipe.ensemble.shares
    if recipe.ensemble.combine == "logits":
        return mean_of_logits(logits_MNK, shares)
    return mean_of_probabilities(logits_MNK, shares, getattr(recipe.method, "temperature", 1.0))


class EnsembleOutputs:
    """The combined outputs of several teachers. Its images and seconds are the sums over the teachers."""

    def __init__(self, members: Sequence[TeacherOutputs], combine: Callable[[Sequence[Tensor]], Tensor]) -> None:
        self.members, self._combine = tuple(members), combine

    @property
    def requested(self) -> int:
        return sum(member.requested for member in self.members)

    @property
    def computed(self) -> int:
        return sum(member.computed for member in self.members)

    @property
    def checked(self) -> int:
        return sum(member.checked for member in self.members)

    @property
    def seconds(self) -> float:
        return sum(member.seconds for member in self.members)

    @property
    def forward_seconds(self) -> float:
        return sum(member.forward_seconds for member in self.members)

    @property
    def off_reason(self) -> str | None:
        return next((member.off_reason for member in self.members if member.off_reason is not None), None)

    def begin(self, epoch: int) -> None:
        for member in self.members:
            member.begin(epoch)

    def of(self, images: Tensor, batch: Batch) -> Outputs:
        return Outputs(self._combine([member.of(images, batch).logits for member in self.members]))

    def val_logits(self, *, counted: bool) -> Tensor:
        return self._combine([member.val_logits(counted=counted) for member in self.members])

    def close(self) -> None:
        for member in self.members:
            member.close()
