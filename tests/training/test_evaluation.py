"""Metrics against slow references in plain Python; the mean over test-time views."""

import math

import pytest
import torch
from torch import nn

from kdtrain.data.base import Split, as_floats
from kdtrain.runtime.rng import generator
from kdtrain.training.evaluation import (
    accuracy,
    agreement,
    diff_t_s,
    diff_t_s_published,
    ece,
    logits_of,
    mpa,
    pair_metrics,
    student_metrics,
    teacher_kl,
    tta_logits,
)

CPU = torch.device("cpu")
SHAPES = [(1, 2), (7, 2), (153, 10), (40, 200)]


def made_up(shape: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(student [N, K], teacher [N, K], labels [N]), float32."""
    student, teacher = (3 * torch.randn(shape, generator=generator(0, name)) for name in ("student", "teacher"))
    return student, teacher, torch.randint(shape[1], shape[:1], generator=generator(0, "labels"))


def softmax(row: list[float]) -> list[float]:
    largest = max(row)
    exponentials = [math.exp(value - largest) for value in row]
    return [value / math.fsum(exponentials) for value in exponentials]


def named(row: list[float]) -> int:
    return row.index(max(row))


def test_mpa_counts_a_rare_class_as_much_as_a_frequent_one() -> None:
    labels = torch.tensor([0] * 9 + [2])
    always_0 = torch.tensor([[1.0, 0.0, 0.0]]).expand(10, 3)
    assert (accuracy(always_0, labels), mpa(always_0, labels)) == (0.9, 0.5)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_metrics_of_a_student_are_those_computed_by_hand(shape: tuple[int, int]) -> None:
    student, _, labels = made_up(shape)
    right: dict[int, list[bool]] = {}
    rows, log_p = [], []
    for row, label in zip(student.tolist(), labels.tolist(), strict=True):
        right.setdefault(label, []).append(named(row) == label)
        rows.append((max(softmax(row)), named(row) == label))
        log_p.append(math.log(softmax(row)[label]))
    by_class = [sum(each) / len(each) for each in right.values()]  # classes without an image have none
    gap = 0.0
    for m in range(1, 16):
        bin_m = [row for row in rows if (m - 1) / 15 < row[0] <= m / 15]
        gap += abs(sum(hit for _, hit in bin_m) - math.fsum(confidence for confidence, _ in bin_m)) / shape[0]
    by_hand = {
        "accuracy": sum(map(sum, right.values())) / shape[0], "mpa": sum(by_class) / len(by_class),
        "nll": -math.fsum(log_p) / shape[0], "ece": gap,
    }  # fmt: skip
    assert student_metrics(student, labels) == pytest.approx(by_hand, rel=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_metrics_of_a_student_and_its_teacher_are_those_computed_by_hand(shape: tuple[int, int]) -> None:
    student, teacher, _ = made_up(shape)
    kl, same, difference = 0.0, 0, 0.0
    for s_row, t_row in zip(student.tolist(), teacher.tolist(), strict=True):
        s, t = softmax(s_row), softmax(t_row)
        kl += math.fsum(t_k * (math.log(t_k) - math.log(s_k)) for s_k, t_k in zip(s, t, strict=True))
        same += named(s_row) == named(t_row)
        difference += math.fsum(abs(t_k - s_k) for s_k, t_k in zip(s_row, t_row, strict=True))
    by_hand = {
        "teacher_kl": kl / shape[0], "agreement": same / shape[0], "diff_t_s": difference / (shape[0] * shape[1]),
        "diff_t_s_published": diff_t_s_published(student, teacher, 1, 2, 16),
    }  # fmt: skip
    assert pair_metrics(student, teacher, 1, 2, 16) == pytest.approx(by_hand, rel=1e-9)
    assert (teacher_kl(teacher, teacher), diff_t_s(teacher, teacher), agreement(teacher, teacher)) == (0, 0, 1)


def test_ece_is_zero_for_a_sure_network_that_is_right_and_one_where_it_is_wrong() -> None:
    sure, labels = 1000 * torch.eye(4), torch.arange(4)
    assert ece(sure, labels) == 0
    assert ece(sure, labels.roll(1)) == 1
    assert ece(torch.zeros(8, 4), torch.arange(8) % 4) == 0  # a quarter right at confidence a quarter


def test_logits_that_are_not_finite_give_nan() -> None:
    student, teacher, labels = made_up((7, 3))
    student[2, 1] = float("nan")
    assert math.isnan(student_metrics(student, labels)["nll"])
    assert math.isnan(student_metrics(student, labels)["ece"])
    assert math.isnan(pair_metrics(student, teacher, 0, 0, 3)["teacher_kl"])


@pytest.mark.parametrize(("total", "batch_size", "images"), [(153, 32, 25), (64, 32, 32), (10, 32, 10)])
def test_the_published_difference_is_over_the_last_batch_of_a_shuffled_split(
    total: int, batch_size: int, images: int
) -> None:
    student, teacher, _ = made_up((total, 2))
    order = torch.randperm(total, generator=generator(5, "diff_t_s", 3)).tolist()
    batch = [order[i : i + batch_size] for i in range(0, total, batch_size)][-1]
    assert len(batch) == images
    by_hand = sum(abs(float(teacher[i, k]) - float(student[i, k])) for i in batch for k in range(2)) / (2 * images)
    assert diff_t_s_published(student, teacher, 5, 3, batch_size) == pytest.approx(by_hand, rel=1e-9)


def test_the_published_difference_is_another_sample_in_every_epoch_and_the_corrected_one_is_not_sampled() -> None:
    student, teacher, _ = made_up((153, 2))
    by_epoch = [pair_metrics(student, teacher, 0, epoch, 32) for epoch in range(10)]
    assert len({row["diff_t_s_published"] for row in by_epoch}) == 10
    assert len({row["diff_t_s"] for row in by_epoch}) == 1


class Pixels:
    """Images with one view, and `views` at test time (None: no such views)."""

    def __init__(self, count: int, views: int | None) -> None:
        self.pixels = torch.randint(256, (count, 1, 4, 4), generator=generator(0, "pixels")).to(torch.uint8)
        self.views = views
        self.most_at_once = 0

    def __len__(self) -> int:
        return len(self.pixels)

    def for_device(self, device: torch.device) -> "Pixels":
        return self

    def eval_view(self, indices: torch.Tensor) -> torch.Tensor:
        return self.pixels[indices]

    def tta_view(self, indices: torch.Tensor) -> torch.Tensor | None:
        if self.views is None:
            return None
        self.most_at_once = max(self.most_at_once, len(indices) * self.views)
        return torch.stack([self.pixels[indices].roll(v, 3) // (v + 1) for v in range(self.views)], dim=1)


def classifier() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.ReLU(), nn.Linear(8, 3))


@pytest.mark.parametrize("count", [1, 61, 300])
def test_test_time_logits_are_the_mean_over_an_images_views(count: int) -> None:
    images, network = Pixels(count, 10), classifier().train()
    split = Split(images, torch.zeros(count, dtype=torch.int64))
    found = tta_logits(network, split, CPU)
    assert not network.training
    with torch.no_grad():
        by_view = [network(as_floats(images.pixels.roll(v, 3) // (v + 1))) for v in range(10)]
    torch.testing.assert_close(found, torch.stack(by_view).mean(0))
    assert found.shape == (count, 3)
    assert images.most_at_once <= 64


def test_a_single_test_time_view_gives_the_ordinary_logits_and_none_gives_none() -> None:
    network = classifier()
    one, none = (Split(Pixels(20, views), torch.zeros(20, dtype=torch.int64)) for views in (1, None))
    torch.testing.assert_close(tta_logits(network, one, CPU), logits_of(network, one, CPU))
    assert tta_logits(network, none, CPU) is None
