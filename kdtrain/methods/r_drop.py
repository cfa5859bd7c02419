"""R-Drop (Liang et al. 2021, arXiv:2106.14448): agreement of two passes with dropout. N images, K classes."""

from torch import Tensor
from torch.nn import functional

from kdtrain.methods.base import at_least_float32, require_equal_shapes


def symmetric_kl(one_NK: Tensor, other_NK: Tensor) -> Tensor:
    """Return (KL(p || q) + KL(q || p)) / 2, mean over N, in nats and at least float32.

    Args:
        one_NK: logits of p = softmax(one) [N, K].
        other_NK: logits of q [N, K]. Both get a gradient.

    Returns:
        Scalar.

    Raises:
        ValueError: if the shapes differ.

    Source:
        Liang et al. 2021, arXiv:2106.14448, equation 2.
    """
    require_equal_shapes(one_NK, other_NK)
    log_p = functional.log_softmax(at_least_float32(one_NK), dim=1)
    log_q = functional.log_softmax(at_least_float32(other_NK), dim=1)
    return ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(1).mean() / 2
