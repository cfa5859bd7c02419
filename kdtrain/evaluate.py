"""What is measured of a network on a split. Every rank takes its share of the images; all get the same numbers."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdtrain import ranks
from kdtrain.data import Split

CHUNK_IMAGES = 256


@torch.inference_mode()
def logits_of(network: nn.Module, split: Split, device: torch.device) -> Tensor:
    """Logits [N, K] of a whole split in its own order, float32, on the CPU of every rank."""
    network.eval()
    own = ranks.share(torch.arange(len(split)))
    chunks = own.split(CHUNK_IMAGES) if len(own) else (torch.tensor([0]),)  # a rank without images gives no row
    rows = [network(split.images.eval_view(chunk).to(device)).float() for chunk in chunks]
    return ranks.gather_rows(torch.cat(rows)[: len(own)], len(split)).cpu()


def accuracy(logits_NK: Tensor, labels_N: Tensor) -> float:
    """Share of images whose largest logit is the label's, in [0, 1]."""
    return (logits_NK.argmax(1) == labels_N).double().mean().item()


def nll(logits_NK: Tensor, labels_N: Tensor) -> float:
    """Negative log-likelihood of the labels, mean over N, in nats, computed in float64."""
    return functional.cross_entropy(logits_NK.double(), labels_N).item()


def agreement(logits_NK: Tensor, teacher_NK: Tensor) -> float:
    """Share of images on which student and teacher name the same class (Stanton et al. 2021, arXiv:2106.05945)."""
    return (logits_NK.argmax(1) == teacher_NK.argmax(1)).double().mean().item()
