"""Mixup (Zhang et al. 2018, arXiv:1710.09412) as function matching uses it (Beyer et al. 2021, arXiv:2106.05237).

Teacher and student see the same mixed image. N images in a batch, K classes.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from kdtrain.base_config import Config
from kdtrain.data.base import HIDDEN
from kdtrain.data.sampling import by_turn
from kdtrain.runtime.device import to_device
from kdtrain.runtime.rng import generator


class Mixup(Config):
    """Replace each image x by l x + (1 - l) x', where x' is its partner and l its share.

    corrected: partner and share are functions of (seed, epoch, image), not of the batch, so trials with different batch
    sizes share the teacher outputs of mixed images. The partner is the next image in a permutation of the whole epoch
    (the paper's code rolls a batch by one), and l = max(u, 1 - u), u ~ U(0, 1) for each image.
    published: one l ~ U(0, 1) for the whole batch, and the partners are the batch reversed. So every pair occurs twice,
    once with l and once with 1 - l, and the middle image of an odd batch is mixed with itself.
    """

    convention: Literal["corrected", "published"] = "corrected"


@dataclass(frozen=True)
class Pairing:
    """The partners of a batch's images, int64 [N], and the images' shares l, float32 [N]."""

    partners: Tensor
    shares: Tensor


def pairing(mixup: Mixup, batch: Tensor, total: int, seed: int, turns: Tensor | int, step: int) -> Pairing:
    """Return the partners and shares of a batch; they are equal on all ranks.

    Args:
        mixup: The recipe's mixup.
        batch: Image indices, int64 [N]. The published convention needs the whole global batch.
        total: Images that can be partners.
        seed: The training's seed.
        turns: The turn of each image (`sampling.Drawing.turns`), int64 [N], or that of all; the corrected convention
            draws from it.
        step: The step of the training, from 0; the published convention draws from it.
    """
    if mixup.convention == "published":
        share = torch.rand((), generator=generator(seed, "mixup", step))
        return Pairing(batch.flip(0), share.expand(len(batch)))
    turns = torch.as_tensor(turns).expand(len(batch))
    pairs = [[of_all[part] for of_all in _of_a_turn(total, seed, turn)] for turn, part in by_turn(turns, batch)]
    return Pairing(*map(torch.cat, zip(*pairs, strict=True)))


def mixed(images: Tensor, partner_images: Tensor, shares: Tensor) -> Tensor:
    """Return l x + (1 - l) x' of images x and x', float [N, C, H, W], and shares l, float32 [N]."""
    shares_N111 = to_device(shares.to(images.dtype), images.device)[:, None, None, None]
    return shares_N111 * images + (1 - shares_N111) * partner_images


def mixed_target(labels: Tensor, partner_labels: Tensor, shares: Tensor, classes: int) -> Tensor:
    """Return target probabilities [N, K]: l for the image's label, 1 - l for its partner's, 1 if they are equal.

    A hidden label adds nothing, so that a row may sum to less than 1, or to 0; see `label_mass`.
    """
    shares = shares.to(labels.device, torch.float32)
    target_NK = torch.zeros(len(labels), classes, device=labels.device)
    for each, shares_N in ((labels, shares), (partner_labels, 1 - shares)):
        target_NK.scatter_add_(1, each.clamp(min=0)[:, None], shares_N.where(each != HIDDEN, 0.0)[:, None])
    return target_NK


def label_mass(labels: Tensor, partner_labels: Tensor, shares: Tensor) -> Tensor:
    """Return the sums of the rows of `mixed_target`, float32 [N]; exactly 1 if both images have their label."""
    of_both_N = (labels != HIDDEN) & (partner_labels != HIDDEN)
    own_N, others_N = shares.where(labels != HIDDEN, 0.0), (1 - shares).where(partner_labels != HIDDEN, 0.0)
    return (own_N + others_N).where(~of_both_N, 1.0)


@lru_cache(maxsize=2)  # the same for every batch of an epoch
def _of_a_turn(total: int, seed: int, turn: int) -> tuple[Tensor, Tensor]:
    """Return (partners, shares) of all images. The permutation is one cycle, so no image is its own partner."""
    order = torch.randperm(total, generator=generator(seed, "mixup partner", turn))
    partners = torch.empty_like(order)
    partners[order] = order.roll(1)
    drawn = torch.rand(total, generator=generator(seed, "mixup", turn))
    return partners, torch.maximum(drawn, 1 - drawn)
