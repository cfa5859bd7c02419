"""kd against a slow reference: the equation of Hinton et al. 2015, section 2, in plain Python."""

import math

import pytest
import torch
from torch.nn import functional
from trainings import KD, recipe, trained

from kdtrain.methods.base import Batch, MethodContext, Outputs, cross_entropy, weighted_sum
from kdtrain.methods.kd import (
    CONVENTIONS,
    Kd,
    kd_loss,
    kd_loss_published_cifar10,
    kd_loss_published_flowers,
    kd_loss_published_mnist,
)
from kdtrain.methods.loss_weights import LossWeights
from kdtrain.runtime.rng import generator
from kdtrain.trials.store import Store

SHAPES = [(1, 2), (7, 2), (5, 10), (3, 200)]
TEMPERATURES = [0.5, 1.0, 4.0, 20.0]


def logits(shape: tuple[int, int], purpose: str, scale: float = 3.0) -> torch.Tensor:
    return scale * torch.randn(shape, generator=generator(0, purpose), dtype=torch.float64)


def softened(row: list[float], temperature: float) -> list[float]:
    exponentials = [math.exp(value / temperature) for value in row]
    return [value / math.fsum(exponentials) for value in exponentials]


def kl_by_hand(p_NK: torch.Tensor, q_NK: torch.Tensor, temperature: float) -> float:
    """sum_k p_k log(p_k / q_k), mean over N, with loops."""
    total = 0.0
    for p_row, q_row in zip(p_NK.tolist(), q_NK.tolist(), strict=True):
        p, q = softened(p_row, temperature), softened(q_row, temperature)
        total += math.fsum(p_k * math.log(p_k / q_k) for p_k, q_k in zip(p, q, strict=True))
    return total / len(p_NK)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("shape", SHAPES)
def test_kd_is_t_squared_times_the_kl_from_student_to_teacher(shape: tuple[int, int], temperature: float) -> None:
    student, teacher = logits(shape, "student"), logits(shape, "teacher")
    by_hand = temperature**2 * kl_by_hand(teacher, student, temperature)
    assert kd_loss(student, teacher, temperature=temperature).item() == pytest.approx(by_hand, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("shape", SHAPES)
def test_published_mnist_kd_is_what_the_document_computes(shape: tuple[int, int], temperature: float) -> None:
    student, teacher = logits(shape, "student"), logits(shape, "teacher")
    log_teacher = functional.log_softmax(teacher / temperature, dim=1)
    document = functional.kl_div(
        log_teacher, functional.softmax(student / temperature, dim=1), reduction="batchmean"
    ).item()
    ours = kd_loss_published_mnist(student, teacher, temperature=temperature).item()
    assert ours == pytest.approx(document, rel=1e-9, abs=1e-12)
    assert ours == pytest.approx(kl_by_hand(student, teacher, temperature), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("shape", SHAPES)
def test_published_cifar10_kd_is_what_the_document_computes_k_times_smaller(
    shape: tuple[int, int], temperature: float
) -> None:
    student, teacher = logits(shape, "student"), logits(shape, "teacher")
    with pytest.warns(UserWarning, match="reduction: 'mean' divides the total loss"):  # torch itself says so
        document = torch.nn.KLDivLoss()(
            functional.log_softmax(student / temperature, dim=1), functional.softmax(teacher / temperature, dim=1)
        )
    ours = kd_loss_published_cifar10(student, teacher, temperature=temperature).item()
    assert ours == pytest.approx(temperature**2 * document.item(), rel=1e-9, abs=1e-12)
    by_hand = temperature**2 * kl_by_hand(teacher, student, temperature) / shape[1]
    assert ours == pytest.approx(by_hand, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("shape", SHAPES)
def test_published_flowers_kd_is_the_kl_without_t_squared(shape: tuple[int, int], temperature: float) -> None:
    student, teacher = logits(shape, "student"), logits(shape, "teacher")
    p, q = functional.softmax(teacher / temperature, dim=1), functional.softmax(student / temperature, dim=1)
    keras = (p * (p / q).log()).sum(1).mean().item()  # keras.losses.KLDivergence, reduction "sum_over_batch_size"
    ours = kd_loss_published_flowers(student, teacher, temperature=temperature).item()
    assert ours == pytest.approx(keras, rel=1e-9, abs=1e-12)
    assert ours == pytest.approx(kl_by_hand(teacher, student, temperature), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("loss", CONVENTIONS.values())
@pytest.mark.parametrize("shape", SHAPES)
def test_kd_is_zero_with_zero_gradient_when_student_equals_teacher(loss, shape: tuple[int, int]) -> None:
    student = logits(shape, "student").requires_grad_()
    value = loss(student, student.detach(), temperature=3.0)
    value.backward()
    assert value.item() == 0
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-15


@pytest.mark.parametrize("loss", CONVENTIONS.values())
def test_kd_is_not_changed_by_a_constant_added_to_all_logits_of_an_image(loss) -> None:
    student, teacher = logits((5, 10), "student"), logits((5, 10), "teacher")
    shift = logits((5, 1), "shift")
    value = loss(student, teacher, temperature=2.0)
    shifted = loss(student + shift, teacher - 2 * shift, temperature=2.0)
    torch.testing.assert_close(value, shifted, rtol=1e-12, atol=0)


def test_with_t_squared_the_gradient_keeps_its_scale_and_without_it_falls_600_times() -> None:
    student, teacher = logits((64, 10), "student", 0.5), logits((64, 10), "teacher", 0.5)

    def gradient(loss, temperature: float) -> float:
        leaf = student.clone().requires_grad_()
        loss(leaf, teacher, temperature=temperature).backward()
        return leaf.grad.norm().item()

    sizes = [gradient(kd_loss, temperature) for temperature in (1.0, 2.0, 5.0, 10.0, 20.0, 40.0)]
    assert max(sizes) / min(sizes) < 1.3
    for loss in (kd_loss_published_mnist, kd_loss_published_flowers):
        assert gradient(loss, 1.0) / gradient(loss, 20.0) > 300


@pytest.mark.parametrize("loss", CONVENTIONS.values())
@pytest.mark.parametrize("shape", [(3, 2), (4, 7)])
def test_kd_has_the_gradient_of_its_value(loss, shape: tuple[int, int]) -> None:
    student, teacher = logits(shape, "student").requires_grad_(), logits(shape, "teacher")
    assert torch.autograd.gradcheck(lambda leaf: loss(leaf, teacher, temperature=2.5), (student,))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("loss", CONVENTIONS.values())
def test_kd_is_finite_and_float32_under_autocast_where_the_naive_form_overflows(loss, dtype: torch.dtype) -> None:
    student = torch.tensor([[300.0, -300.0, 0.0], [0.0, 0.0, 200.0]], dtype=dtype, requires_grad=True)
    teacher = torch.tensor([[-250.0, 250.0, 0.0], [150.0, 0.0, -150.0]], dtype=dtype)
    naive = torch.softmax(teacher, 1) * (torch.softmax(teacher, 1).log() - torch.softmax(student, 1).log())
    assert not naive.sum().isfinite()
    with torch.autocast("cpu", dtype):
        value = loss(student, teacher, temperature=1.0)
    value.backward()
    assert value.dtype == torch.float32
    assert value.isfinite()
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_cross_entropy_with_smoothing_is_the_mixture_of_label_and_uniform() -> None:
    student, target = logits((5, 10), "student"), torch.tensor([0, 3, 9, 3, 1])
    by_hand = 0.0
    for row, label in zip(student.tolist(), target.tolist(), strict=True):
        log_p = [math.log(p) for p in softened(row, 1.0)]
        by_hand -= 0.9 * log_p[label] + 0.1 * math.fsum(log_p) / 10
    assert cross_entropy(student, target, 0.1).item() == pytest.approx(by_hand / 5, rel=1e-9)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_the_criterion_weighs_its_terms_by_the_balance(convention: str) -> None:
    config = Kd(name="kd", temperature=4.0, balance=LossWeights(alpha_ce=0.1), convention=convention)
    student, teacher, of = (
        logits((5, 10), "student"),
        logits((5, 10), "teacher"),
        Batch(torch.arange(5), torch.arange(5)),
    )
    terms = config.criterion(MethodContext(10, 5))(Outputs(student), Outputs(teacher), of)
    soft = CONVENTIONS[convention](student, teacher, temperature=4.0)
    torch.testing.assert_close(weighted_sum(terms), 0.1 * cross_entropy(student, of.target, 0.0) + 0.9 * soft)
    torch.testing.assert_close(
        terms["kd_without_t2"].value, kd_loss(student, teacher, temperature=4.0) / 16, rtol=1e-12, atol=0
    )
    assert terms["kd_without_t2"].weight == 0


def test_training_a_student_leaves_the_teacher_as_it_was(tmp_path) -> None:
    taught = recipe(**KD)
    left = trained(taught, tmp_path)
    teacher_id = left.folder.recipe()["teacher"]["trial_id"]
    before = Store(tmp_path).trial(teacher_id).weights.read_bytes()
    trained(recipe(**KD, seed=1), tmp_path)
    assert Store(tmp_path).trial(teacher_id).weights.read_bytes() == before
