"""The losses of the Python API, called by a stranger: plain tensors and defaults."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from losses import normal
from torch import Tensor, nn

from kdtrain.methods import losses

LABELS = torch.tensor([0, 2, 1, 5])
N, K = 4, 6


def logits(whose: str, classes: int = K) -> Tensor:
    """Large enough that float16 overflows in their squares, and that probabilities vanish."""
    return 150 * normal(N, classes, purpose=whose)


def maps(whose: str, channels: int) -> Tensor:
    return 300 * normal(N, channels, 5, 3, purpose=whose).relu()


CALLS: dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]] = {
    "kd_loss": (losses.kd_loss, (logits("s"), logits("t"))),
    "logit_mse_loss": (losses.logit_mse_loss, (logits("s"), logits("t"))),
    "dist_loss": (losses.dist_loss, (logits("s"), logits("t"))),
    "dkd_loss": (partial(losses.dkd_loss, target_N=LABELS), (logits("s"), logits("t"))),
    "symmetric_kl": (losses.symmetric_kl, (logits("s"), logits("t"))),
    "rkd_distance_loss": (losses.rkd_distance_loss, (logits("s", 8), logits("t", 3))),
    "rkd_angle_loss": (losses.rkd_angle_loss, (logits("s", 8), logits("t", 3))),
    "at_loss": (losses.at_loss, (maps("s", 2), maps("t", 7))),
    "sp_loss": (losses.sp_loss, (maps("s", 2), maps("t", 7))),
    "mgd_loss": (losses.mgd_loss, (maps("s", 3), maps("t", 3))),
    "cross_entropy": (partial(losses.cross_entropy, target=LABELS), (logits("s"),)),
    "standardize_logits": (lambda student: losses.standardize_logits(student).square().mean(), (logits("s"),)),
    "wasserstein_critic_loss": (losses.wasserstein_critic_loss, (normal(N, purpose="s"), normal(N, purpose="t"))),
    "gradient_penalty": (
        lambda points: losses.gradient_penalty(nn.Sequential(nn.Linear(K, 1), nn.Flatten(0)).to(points.dtype), points),
        (normal(N, K, purpose="s"),),
    ),
}
TEACHER_WITHOUT_GRADIENT = sorted(CALLS.keys() - {"symmetric_kl", "wasserstein_critic_loss", "gradient_penalty"})


def test_every_loss_is_called_here_and_documented() -> None:
    assert sorted(CALLS) == losses.__all__
    for name in losses.__all__:
        doc = getattr(losses, name).__doc__ or ""
        assert "Args:" in doc, name


@pytest.mark.parametrize("name", CALLS)
def test_a_loss_takes_plain_tensors_and_returns_a_finite_scalar(name: str) -> None:
    loss, tensors = CALLS[name]
    value = loss(*tensors)
    assert (value.shape, value.dtype) == ((), torch.float64)
    assert value.isfinite()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", TEACHER_WITHOUT_GRADIENT)
def test_in_half_precision_a_loss_is_that_of_float32_and_its_gradient_is_finite(name: str, dtype: torch.dtype) -> None:
    loss, tensors = CALLS[name]
    student, *teacher = (tensor.to(dtype) for tensor in tensors)
    student.requires_grad_()
    for each in teacher:
        each.requires_grad_()
    with torch.autocast("cpu", dtype):
        value = loss(student, *teacher)
    value.backward()
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(student.float(), *(each.float() for each in teacher)), rtol=1e-5, atol=0)
    assert student.grad.isfinite().all()
    assert all(each.grad is None for each in teacher)


@pytest.mark.parametrize(
    "name", [name for name, (_, tensors) in CALLS.items() if len(tensors) == 2 and "critic" not in name]
)
def test_another_number_of_images_is_refused_with_both_sizes(name: str) -> None:
    loss, (student, teacher) = CALLS[name]
    with pytest.raises(ValueError, match=r"must have equal sizes, got \([14],.*\) and \([14],"):
        loss(student, teacher[:1])  # torch would broadcast it


def test_the_common_defaults_are_those_of_the_papers() -> None:
    explicit = {
        "kd_loss": {"temperature": 4.0},
        "dkd_loss": {"alpha": 1.0, "beta": 8.0, "temperature": 4.0},
        "dist_loss": {"beta": 1.0, "gamma": 1.0, "temperature": 4.0},
        "sp_loss": {"row_norm": 2},
        "mgd_loss": {"alpha": 7e-5},
        "cross_entropy": {"label_smoothing": 0.0},
    }
    for name, options in explicit.items():
        loss, tensors = CALLS[name]
        assert torch.equal(loss(*tensors), loss(*tensors, **options)), name
