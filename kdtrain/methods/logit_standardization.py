"""Logit standardization (Sun et al. 2024, arXiv:2403.01427) for methods that soften logits. N images, K classes.

Two methods use it, so it is in neither's module: an edit here raises NUMERICS, see `trials.identity`.
"""

from torch import Tensor

from kdtrain.methods.base import at_least_float32


def standardize_logits(logits_NK: Tensor) -> Tensor:
    """Return each image's logits minus their mean, divided by their standard deviation, in at least float32.

    The standard deviation is the unbiased one and 1e-7 is added to it, as in the authors' code. Divide the result by
    the temperature. With K = 2 it is +-sqrt(1/2) for all logits, so its gradient is zero. If all logits of an image are
    nearly equal, its gradient is large.

    Args:
        logits_NK: [N, K].

    Returns:
        [N, K].

    Source:
        Sun et al. 2024, arXiv:2403.01427, equation 11.
    """
    logits_NK = at_least_float32(logits_NK)
    deviation_N1 = logits_NK.std(dim=1, keepdim=True)
    return (logits_NK - logits_NK.mean(dim=1, keepdim=True)) / (deviation_N1 + 1e-7)
