"""kd and its published variants against loops: the equation of Hinton et al. 2015, section 2."""

import math

import pytest
import torch
from losses import CONFIGS, batch, criterion, kl_of_rows, normal, outputs, softened
from torch import Tensor
from torch.nn import functional

from kdtrain.methods.base import cross_entropy
from kdtrain.methods.kd import CONVENTIONS, kd_loss

SHAPES = [(1, 2), (7, 2), (5, 10), (3, 200)]
TEMPERATURES = [0.5, 1.0, 4.0, 20.0]


def inputs(shape: tuple[int, int], scale: float = 3.0) -> tuple[Tensor, Tensor]:
    return scale * normal(*shape, purpose="student"), scale * normal(*shape, purpose="teacher")


def kl_by_hand(p_NK: Tensor, q_NK: Tensor, temperature: float) -> float:
    rows = zip(p_NK.tolist(), q_NK.tolist(), strict=True)
    return math.fsum(kl_of_rows(softened(p, temperature), softened(q, temperature)) for p, q in rows) / len(p_NK)


BY_HAND = {
    "corrected": lambda s, t, T: T**2 * kl_by_hand(t, s, T),
    "published_mnist": lambda s, t, T: kl_by_hand(s, t, T),
    "published_cifar10": lambda s, t, T: T**2 * kl_by_hand(t, s, T) / s.shape[1],
    "published_flowers": lambda s, t, T: kl_by_hand(t, s, T),
}


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_each_convention_is_its_equation(convention: str, shape: tuple[int, int], temperature: float) -> None:
    student, teacher = inputs(shape)
    ours = CONVENTIONS[convention](student, teacher, temperature=temperature).item()
    assert ours == pytest.approx(BY_HAND[convention](student, teacher, temperature), rel=1e-9, abs=1e-12)


def keras(s: Tensor, t: Tensor) -> Tensor:
    """keras.losses.KLDivergence, reduction sum_over_batch_size."""
    p, q = functional.softmax(t / 4, dim=1), functional.softmax(s / 4, dim=1)
    return (p * (p / q).log()).sum(1).mean()


REFERENCE_IMPLEMENTATIONS = {
    "published_mnist": lambda s, t: functional.kl_div(
        functional.log_softmax(t / 4, dim=1), functional.softmax(s / 4, dim=1), reduction="batchmean"
    ),
    "published_cifar10": lambda s, t: (
        16 * torch.nn.KLDivLoss()(functional.log_softmax(s / 4, dim=1), functional.softmax(t / 4, dim=1))
    ),
    "published_flowers": keras,
}


@pytest.mark.filterwarnings("ignore:reduction")  # torch advises against the default of KLDivLoss
@pytest.mark.parametrize("convention", REFERENCE_IMPLEMENTATIONS)
def test_each_published_convention_is_what_the_reference_implementation_computes(convention: str) -> None:
    student, teacher = inputs((5, 10))
    theirs = REFERENCE_IMPLEMENTATIONS[convention](student, teacher)
    torch.testing.assert_close(CONVENTIONS[convention](student, teacher, temperature=4.0), theirs, rtol=1e-9, atol=0)


@pytest.mark.parametrize("loss", CONVENTIONS.values())
def test_kd_is_not_changed_by_a_constant_added_to_all_logits_of_an_image(loss) -> None:
    (student, teacher), shift = inputs((5, 10)), normal(5, 1, purpose="shift")
    value = loss(student, teacher, temperature=2.0)
    shifted = loss(student + shift, teacher - 2 * shift, temperature=2.0)
    torch.testing.assert_close(value, shifted, rtol=1e-12, atol=0)


def test_with_t_squared_the_gradient_keeps_its_scale_and_without_it_falls_600_times() -> None:
    student, teacher = inputs((64, 10), 0.5)

    def gradient(loss, temperature: float) -> float:
        leaf = student.clone().requires_grad_()
        loss(leaf, teacher, temperature=temperature).backward()
        return leaf.grad.norm().item()

    sizes = [gradient(kd_loss, temperature) for temperature in (1.0, 2.0, 5.0, 10.0, 20.0, 40.0)]
    assert max(sizes) / min(sizes) < 1.3
    for convention in ("published_mnist", "published_flowers"):
        assert gradient(CONVENTIONS[convention], 1.0) / gradient(CONVENTIONS[convention], 20.0) > 300


def test_cross_entropy_with_smoothing_is_the_mixture_of_label_and_uniform() -> None:
    (student, _), target = inputs((5, 10)), torch.tensor([0, 3, 9, 3, 1])
    by_hand = 0.0
    for row, label in zip(student.tolist(), target.tolist(), strict=True):
        log_p = [math.log(p) for p in softened(row, 1.0)]
        by_hand -= 0.9 * log_p[label] + 0.1 * math.fsum(log_p) / 10
    assert cross_entropy(student, target, 0.1).item() == pytest.approx(by_hand / 5, rel=1e-9)


@pytest.mark.parametrize("label", [label for label in CONFIGS if label.split()[0] == "kd" and "stand" not in label])
def test_kl_without_t_squared_is_logged_whatever_the_convention(label: str) -> None:
    student, teacher = outputs("student"), outputs("teacher")
    logged = criterion(CONFIGS[label])(student, teacher, batch())["kd_without_t2"]
    expected = kd_loss(student.logits, teacher.logits, temperature=4.0) / 16
    torch.testing.assert_close(logged.value, expected, rtol=1e-12, atol=0)
