"""Mixup (Zhang et al. 2018, arXiv:1710.09412) as function matching uses it (Beyer et al. 2021, arXiv:2106.05237).

Teacher and student see the same mixed image. N images in a batch, K classes.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from kdtrain.base_config import Config
from kdtrain.runtime.rng import generator


class Mixup(Config):
    """Each image l x + (1 - l) x' with a partner x' and a share l.

    corrected: partner and share belong to (seed, epoch, image), whatever the batch: what a teacher said of a mixed
    image can be kept and read by a trial of another batch size. The partner is the next image in a permutation of
    the whole epoch, as the paper's code rolls by one, and l = max(u, 1 - u), u ~ U(0, 1) for each image.
    published: one l ~ U(0, 1) for a whole batch, and the partner is the batch reversed. So every pair occurs twice,
    once with l and once with 1 - l, and an odd batch's middle image is mixed with itself.
    """

    convention: Literal["corrected", "published"] = "corrected"


@dataclass(frozen=True)
class Pairing:
    """Whom each image of a batch is mixed with, int64 [N], and its own share l, float32 [N]."""

    partners: Tensor
    shares: Tensor


def pairing(mixup: Mixup, batch: Tensor, total: int, seed: int, epoch: int, step: int) -> Pairing:
    """For a global batch of image indices [N] out of `total` training images; all ranks get the same numbers.

    corrected: any part of the batch gets its part of the answer. published: `batch` must be the whole one.
    """
    if mixup.convention == "published":
        share = torch.rand((), generator=generator(seed, "mixup", step))
        return Pairing(batch.flip(0), share.expand(len(batch)))
    partners, shares = _of_an_epoch(total, seed, epoch)
    return Pairing(partners[batch], shares[batch])


def mixed(images: Tensor, partner_images: Tensor, shares: Tensor) -> Tensor:
    """l x + (1 - l) x' for images and partners [N, C, H, W] and shares [N]."""
    shares_N111 = shares.to(images.device, images.dtype, non_blocking=True)[:, None, None, None]
    return shares_N111 * images + (1 - shares_N111) * partner_images


def mixed_target(labels: Tensor, partner_labels: Tensor, shares: Tensor, classes: int) -> Tensor:
    """Probabilities float32 [N, K]: l on the image's own label, 1 - l on its partner's (1 where they are equal)."""
    shares_N1 = shares.to(labels.device, torch.float32)[:, None]
    target_NK = torch.zeros(len(labels), classes, device=labels.device)
    target_NK.scatter_add_(1, labels[:, None], shares_N1)
    return target_NK.scatter_add_(1, partner_labels[:, None], 1 - shares_N1)


@lru_cache(maxsize=2)  # every batch of an epoch asks
def _of_an_epoch(total: int, seed: int, epoch: int) -> tuple[Tensor, Tensor]:
    """(partners, shares) of all images. The permutation is one cycle: no image is its own partner if total > 1."""
    order = torch.randperm(total, generator=generator(seed, "mixup partner", epoch))
    partners = torch.empty_like(order)
    partners[order] = order.roll(1)
    drawn = torch.rand(total, generator=generator(seed, "mixup", epoch))
    return partners, torch.maximum(drawn, 1 - drawn)
