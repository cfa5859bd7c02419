"""Logit Standardization in Knowledge Distillation (Sun et al. 2024, arXiv:2403.01427), equation 11."""

from torch import Tensor

from kdtrain.methods.base import at_least_float32


def standardised(logits_NK: Tensor) -> Tensor:
    """Each image's logits less their mean, divided by their standard deviation: [N, K] in float32.

    The deviation is the unbiased one and 1e-7 is added to it, as in the authors' code. The temperature divides after
    it. With K = 2 the result is +-sqrt(1/2) whatever the logits: the gradient is zero. Near equal logits it is large.
    """
    logits_NK = at_least_float32(logits_NK)
    deviation_N1 = logits_NK.std(dim=1, keepdim=True)
    return (logits_NK - logits_NK.mean(dim=1, keepdim=True)) / (deviation_N1 + 1e-7)
