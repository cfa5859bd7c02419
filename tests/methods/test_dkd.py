"""dkd against loops: equations 3-7 of Zhao et al. 2022; logit standardisation against Sun et al. 2024."""

import math
import statistics

import pytest
import torch
from losses import CONFIGS, batch, criterion, kl_of_rows, normal, outputs, softened
from torch.nn import functional

from kdtrain.methods.dkd import dkd_loss
from kdtrain.methods.kd import kd_loss
from kdtrain.methods.logit_standardization import standardize_logits

SHAPES = [(1, 3), (7, 3), (5, 10), (3, 200)]
TEMPERATURES = [1.0, 4.0]


def inputs(shape: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    student, teacher = 3 * normal(*shape, purpose="s"), 3 * normal(*shape, purpose="t")
    return student, teacher, (5 * torch.arange(shape[0])) % shape[1]


def without(row: list[float], k: int) -> list[float]:
    return row[:k] + row[k + 1 :]


@pytest.mark.parametrize("weights", [(1.0, 8.0), (0.0, 1.0), (1.0, 0.0)])
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("shape", SHAPES)
def test_dkd_is_the_weighted_sum_of_target_and_non_target_parts(
    shape: tuple[int, int], temperature: float, weights: tuple[float, float]
) -> None:
    student, teacher, target = inputs(shape)
    alpha, beta = weights
    total = 0.0
    for s_row, t_row, label in zip(student.tolist(), teacher.tolist(), target.tolist(), strict=True):
        s, t = softened(s_row, temperature)[label], softened(t_row, temperature)[label]
        s_others, t_others = softened(without(s_row, label), temperature), softened(without(t_row, label), temperature)
        total += alpha * kl_of_rows([t, 1 - t], [s, 1 - s]) + beta * kl_of_rows(t_others, s_others)
    ours = dkd_loss(student, teacher, target, alpha=alpha, beta=beta, temperature=temperature)
    assert ours.item() == pytest.approx(temperature**2 * total / shape[0], rel=1e-9, abs=1e-14)


def test_with_the_teachers_own_weight_of_the_other_classes_dkd_is_kd() -> None:
    student, teacher, target = inputs((1, 10))
    others = 1 - functional.softmax(teacher / 4, dim=1)[0, target[0]].item()
    ours = dkd_loss(student, teacher, target, alpha=1.0, beta=others, temperature=4.0)
    torch.testing.assert_close(ours, kd_loss(student, teacher, temperature=4.0), rtol=1e-9, atol=0)


def test_between_two_classes_the_non_target_part_is_nothing() -> None:
    student, teacher, target = (
        3 * normal(5, 2, purpose="s"),
        3 * normal(5, 2, purpose="t"),
        torch.tensor([0, 1, 1, 0, 1]),
    )
    leaf = student.requires_grad_()
    value = dkd_loss(leaf, teacher, target, alpha=0.0, beta=1.0, temperature=2.0)
    assert value.item() == 0
    assert torch.autograd.grad(value, leaf)[0].abs().max() == 0


@pytest.mark.parametrize(
    ("warmup", "epoch", "share"), [(20, 0, 0.05), (20, 9, 0.5), (20, 19, 1), (20, 100, 1), (0, 0, 1)]
)
def test_the_weight_grows_in_the_warm_up_and_the_shown_value_does_not(warmup: int, epoch: int, share: float) -> None:
    made, first = criterion(CONFIGS["dkd"] | {"warmup_epochs": warmup}), batch()
    arguments = outputs("student"), outputs("teacher")
    term = made(*arguments, batch(epoch=epoch))["dkd"]
    assert term.weight == pytest.approx(3 * share)
    assert torch.equal(term.value, made(*arguments, first)["dkd"].value)


@pytest.mark.parametrize("shape", [(1, 3), (5, 10), (3, 200)])
def test_standardised_logits_have_mean_zero_and_unbiased_deviation_one(shape: tuple[int, int]) -> None:
    logits = 3 * normal(*shape, purpose="s") + 5
    for row, ours in zip(logits.tolist(), standardize_logits(logits).tolist(), strict=True):
        mean, deviation = statistics.fmean(row), statistics.stdev(row)
        assert ours == pytest.approx([(value - mean) / (deviation + 1e-7) for value in row], rel=1e-12)


@pytest.mark.parametrize("label", ["kd standardised", "dkd standardised"])
def test_with_standardised_logits_only_their_pattern_counts(label: str) -> None:
    made, student, teacher = criterion(CONFIGS[label]), outputs("student"), outputs("teacher")
    name = CONFIGS[label]["name"]
    value = made(student, teacher, batch())[name].value
    scales = torch.tensor([0.5, 3.0, 1.0, 20.0, 7.0], dtype=torch.float64)[:, None]
    moved = [type(of)(scales * of.logits + shift, of.features) for of, shift in ((student, -4), (teacher, 9))]
    torch.testing.assert_close(made(*moved, batch())[name].value, value, rtol=1e-5, atol=0)


def test_two_standardised_logits_are_the_same_whatever_they_were() -> None:
    leaf = torch.tensor([[0.3, 4.0], [2.0, -9.0]], dtype=torch.float64, requires_grad=True)
    ours = standardize_logits(leaf)
    assert ours.abs().flatten().tolist() == pytest.approx([math.sqrt(0.5)] * 4, rel=1e-6)
    assert torch.autograd.grad(ours[:, 0].sum(), leaf)[0].abs().max() < 1e-6
