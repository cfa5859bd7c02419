"""Trainings on images of which some labels are hidden: what learns from which image, and that no hidden label is used.

N images, K classes.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from losses import ALL_CONFIGS, method
from runs import BATCH_NORM_STUDENT, fitted, hiding, state_of, state_on
from torch import Tensor
from torch.nn import functional
from trainings import ALONE, KD, NO_DATA, recipe

from kdtrain.config.recipe import Recipe
from kdtrain.data.base import HIDDEN, Dataset, Split, TensorImages
from kdtrain.data.registry import load
from kdtrain.errors import UserError
from kdtrain.methods.base import UNLABELLED
from kdtrain.methods.dkd import dkd_loss
from kdtrain.methods.kd import kd_loss
from kdtrain.methods.registry import Method
from kdtrain.storage.cache import Cache
from kdtrain.teacher.cached import CachedTeacher, cached_teacher
from kdtrain.training import loop
from kdtrain.training.loop import load_batch, train_step

DATA = load(recipe().data, NO_DATA)
"""60 images, six of each digit."""
SHOWN = torch.arange(0, 60, 4)
HIDDEN_N = torch.tensor(sorted(set(range(60)) - set(SHOWN.tolist())))
PARTLY = hiding(DATA, HIDDEN_N)
"""15 of the 60 labels are left."""
INDICES = torch.tensor([0, 1, 4, 15, 8, 26, 59])
"""A batch with labels of three of its seven images."""
WITH_LABEL = torch.tensor([0, 2, 4])

WEIGHTS = [0.5, 1.0, 2.0, 3.0, 1.0, 1.0, 0.25, 1.0, 4.0, 1.0]
TERMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "smoothed": {"label_smoothing": 0.1},
    "weighted": {"class_weights": WEIGHTS},
    "weighted and smoothed": {"class_weights": WEIGHTS, "label_smoothing": 0.1},
}


def test_the_hidden_label_of_the_data_is_the_unlabelled_target_of_the_methods() -> None:
    assert HIDDEN == UNLABELLED


@pytest.mark.parametrize("name", TERMS)
def test_cross_entropy_is_torchs_over_the_labelled_images_and_distillation_over_all(name: str) -> None:
    changes = TERMS[name] | {"optimizer": {"name": "sgd", "lr": 0.1}}
    state, by_hand = (state_on(PARTLY, recipe(**KD, **changes)) for _ in range(2))
    images, _ = load_batch(by_hand, INDICES, 0)
    logits, teacher = by_hand.distiller.student(images), by_hand.teacher(images).logits
    hard = functional.cross_entropy(
        logits[WITH_LABEL], DATA.train.labels[INDICES[WITH_LABEL]],
        torch.tensor(changes["class_weights"]) if "class_weights" in changes else None,
        label_smoothing=changes.get("label_smoothing", 0.0),
    )  # fmt: skip
    soft = kd_loss(logits, teacher, temperature=4.0)
    (0.5 * hard + 0.5 * soft).backward()
    terms = train_step(state, INDICES)
    assert terms["cross_entropy"].item() == pytest.approx(hard.item(), rel=1e-6)
    assert terms["kd"].item() == pytest.approx(soft.item(), rel=1e-6)
    trained = state.distiller.student.state_dict()
    for key, parameter in by_hand.distiller.student.named_parameters():
        torch.testing.assert_close(trained[key], parameter.detach() - 0.1 * parameter.grad)


def test_a_batch_without_a_label_has_no_cross_entropy_and_learns_from_the_teacher_only() -> None:
    distilled = KD | {"method": KD["method"] | {"balance": {"weight": 1.0}}}
    only = KD | {"method": KD["method"] | {"balance": {"alpha": 1.0}}}
    one, other = (state_on(PARTLY, recipe(**changes)) for changes in (distilled, only))
    terms = [train_step(state, HIDDEN_N[:5]) for state in (one, other)]
    assert terms[0]["cross_entropy"].item() == 0
    assert terms[0]["loss"].item() == terms[1]["loss"].item() > 0
    for name, value in state_of(one.distiller.student).items():
        torch.testing.assert_close(value, state_of(other.distiller.student)[name])


@pytest.mark.parametrize("weighted", [False, True])
def test_a_mixed_target_has_the_labelled_part_of_an_image(weighted: bool) -> None:
    changes = {"class_weights": WEIGHTS} if weighted else {}
    state = state_on(PARTLY, recipe(**KD, mixup={}, **changes))
    images, _ = load_batch(state, INDICES, 0)
    part = state.loader.part(INDICES, 0, 0, 0)
    log_p = functional.log_softmax(state.distiller.student(images).double(), dim=1)
    labels = PARTLY.train.labels
    total = mass = 0.0
    for i, (image, partner, share) in enumerate(zip(INDICES, part.partners, part.shares.double(), strict=True)):
        for of, weight in ((image, share), (partner, 1 - share)):
            if labels[of] >= 0:
                total -= weight * log_p[i, labels[of]] * (WEIGHTS[labels[of]] if weighted else 1.0)
                mass += weight
    assert 0 < mass < len(INDICES) - 1
    terms = train_step(state, INDICES)
    assert terms["cross_entropy"].item() == pytest.approx((total / mass).item(), rel=1e-5)


def test_dkd_takes_the_teachers_most_probable_class_of_an_unlabelled_image() -> None:
    config = recipe(**KD | {"method": {"name": "dkd", "balance": {"weight": 1.0}}})
    state = state_on(PARTLY, config)
    images, _ = load_batch(state, INDICES, 0)
    teacher = state.teacher(images).logits
    target = teacher.argmax(1)
    target[WITH_LABEL] = DATA.train.labels[INDICES[WITH_LABEL]]
    assert (target != DATA.train.labels[INDICES]).any()  # an untrained teacher is mostly wrong
    expected = dkd_loss(state.distiller.student(images), teacher, target)
    assert train_step(state, INDICES)["dkd"].item() == pytest.approx(expected.item(), rel=1e-6)


SMALL = {
    "data": {"name": "digits", "resolution": 32, "limit_per_class": 2}, "student": BATCH_NORM_STUDENT,
    "optimizer": {"name": "sgd", "lr": 0.001, "momentum": 0.9}, "batch_size": 10, "epochs": 1,
}  # fmt: skip
SMALL_DATA = load(recipe(**SMALL).data, NO_DATA)
"""20 images, two of each digit."""
STAGES = {"at": {"stages": ["4", "8"]}, "sp": {"stages": ["8"]}, "mgd": {"stage": "8"}}
TAUGHT = {"teacher": BATCH_NORM_STUDENT}
ALL: dict[str, dict[str, Any]] = {
    label: ({} if label == "none" else TAUGHT) | {"method": config | STAGES.get(config["name"], {})}
    for label, config in ALL_CONFIGS.items()
}
KD_SMALL = ALL["kd"]
SMALL_SHARED = {"data": SMALL["data"] | {"labelled_per_class": 1}, "labelled_share": 0.5}
ALL |= {
    "none mixed": ALL["none"] | {"mixup": {}},
    "none balanced": ALL["none"] | {"sampler": "class_balanced", "class_weights": "balanced"},
    "kd shared": KD_SMALL | SMALL_SHARED,
    "kd balanced weights": KD_SMALL | {"class_weights": "balanced", "label_smoothing": 0.1},
    "kd mixed": KD_SMALL | {"mixup": {}},
    "kd mixed by batch": KD_SMALL | {"mixup": {"convention": "published"}},
}


def test_every_method_is_trained_here() -> None:
    kinds = {type(method(changes["method"])) for changes in ALL.values()}
    assert kinds == set(get_args(get_args(Method)[0]))


def weights_after(data: Dataset, config: Recipe) -> dict[str, Tensor]:
    state = state_on(data, config)
    fitted(state)
    assert state.step == -(-len(data.train) // config.batch_size)
    return state_of(state.distiller)


@pytest.mark.parametrize("label", ALL)
def test_no_method_uses_a_hidden_label_and_each_uses_the_others(label: str) -> None:
    config = recipe(**SMALL | ALL[label])
    data = SMALL_DATA
    hidden = torch.arange(20)[torch.arange(20) % 3 > 0]

    def with_labels(labels: Tensor) -> Dataset:
        return hiding(replace(data, train=replace(data.train, labels=labels)), hidden)

    labels, others = data.train.labels, (data.train.labels + 1) % 10
    is_hidden = torch.zeros(20, dtype=torch.bool).index_fill(0, hidden, True)
    expected, again, changed = (
        weights_after(with_labels(each), config)
        for each in (labels, others.where(is_hidden, labels), labels.where(is_hidden, others))
    )
    assert all(torch.equal(again[name], value) for name, value in expected.items())
    assert any(not torch.equal(changed[name], value) for name, value in expected.items())


def test_the_student_alone_sees_labelled_images_only_in_as_many_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[int]] = []
    load_one = loop.load_batch

    def watched(state, indices: Tensor, *rest):
        seen.append(indices.tolist())
        return load_one(state, indices, *rest)

    monkeypatch.setattr(loop, "load_batch", watched)
    rows = fitted(state_on(PARTLY, recipe()))
    assert [row["step"] for row in rows] == [4, 8]
    assert [row["images"] for row in rows] == [60, 60]
    assert [len(batch) for batch in seen] == [16, 16, 16, 12] * 2
    assert {image for batch in seen for image in batch} == set(SHOWN.tolist())


def test_the_partners_of_the_student_alone_are_labelled_images() -> None:
    for convention in ("corrected", "published"):
        state = state_on(PARTLY, recipe(mixup={"convention": convention}))
        for step, indices in enumerate(state.loader.batches(1)):
            part = state.loader.part(indices, 1, step, 4 + step)
            assert set(part.partners.tolist()) <= set(SHOWN.tolist())
            if convention == "corrected":
                assert (part.partners != part.indices).all()


class Numbered(TensorImages):
    """Images whose view shows its index and the epoch that it was drawn with."""

    random_views = True

    def train_view(self, indices: Tensor, seed: int, epoch: int) -> Tensor:
        views = torch.zeros(len(indices), *self.pixels.shape[1:], dtype=torch.uint8)
        views[:, 0, 0, 0], views[:, 0, 0, 1] = indices, epoch
        return views


def test_each_time_that_an_image_is_drawn_the_student_alone_sees_another_view() -> None:
    numbered = Split(Numbered(DATA.train.images.pixels), PARTLY.train.labels)
    state = state_on(replace(PARTLY, train=numbered), recipe())
    seen = []
    for epoch in range(2):
        for step, indices in enumerate(state.loader.batches(epoch)):
            images, _ = state.loader.images(state.loader.part(indices, epoch, step, 0), epoch, step, 0)
            views = (images[:, 0, 0, :2] * 255).round().int()
            assert views[:, 0].tolist() == indices.tolist()
            seen += [tuple(view) for view in views.tolist()]
    assert len(set(seen)) == len(seen) == 120
    assert {turn for _, turn in seen} == set(range(8))  # 120 draws of 15 images


SHARED = KD | {"data": ALONE["data"] | {"labelled_per_class": 2}, "labelled_share": 0.5}
"""The config must say that labels are hidden; the data are then those of the test."""


def test_a_share_of_labelled_images_changes_what_is_learned() -> None:
    shares = [None, 0.25, 0.75]
    losses = [
        fitted(state_on(PARTLY, recipe(**SHARED | {"labelled_share": share})))[-1]["train/loss"] for share in shares
    ]
    assert len(set(losses)) == 3


@pytest.mark.parametrize("label", ["kd shared", "sp", "kd mixed"])
def test_cached_teacher_outputs_are_those_of_the_same_batches(label: str, tmp_path: Path) -> None:
    config = recipe(**SMALL | ALL[label] | (SMALL_SHARED if label == "sp" else {}))
    data = hiding(SMALL_DATA, torch.arange(13))
    cache = Cache(tmp_path, 1 << 26)
    share_outputs = partial(cached_teacher, cache=cache, shared=(), check_seed="one")
    live, *cached = (state_on(data, config, **options) for options in ({}, *[{"share_outputs": share_outputs}] * 2))
    fitted(live)
    for state in cached:
        fitted(state)
        assert isinstance(state.teacher_outputs, CachedTeacher)
        assert state.teacher_outputs.off_reason is None
        for name, value in state_of(live.distiller).items():
            assert torch.equal(state_of(state.distiller)[name], value)
    assert cached[1].teacher_outputs.computed == 0


def test_batches_of_another_share_are_cached_apart(tmp_path: Path) -> None:
    share_outputs = partial(cached_teacher, cache=Cache(tmp_path, 1 << 26), shared=(), check_seed="one")
    for share in (0.25, 0.75):
        config = recipe(**SMALL | ALL["sp"] | SMALL_SHARED | {"labelled_share": share})
        data = hiding(SMALL_DATA, torch.arange(13))
        state, live = state_on(data, config, share_outputs=share_outputs), state_on(data, config)
        assert fitted(state)[0]["train/loss"] == fitted(live)[0]["train/loss"]
        assert state.teacher_outputs.computed > 0


FOLDER = {"name": "image_folder", "folder": "pets", "resolution": 16, "val_fraction": 0.2, "test_fraction": 0.2}
UNKNOWN: dict[str, Any] = {"data": FOLDER}
"""The config does not know whether such a folder has unlabelled images."""
REFUSED: dict[str, tuple[Dataset, dict[str, Any], str]] = {
    "a share without hidden labels": (DATA, SHARED | UNKNOWN, "recipe.labelled_share"),
    "no label for the student alone": (hiding(DATA, torch.arange(60)), {}, "recipe.data"),
    "a share of no labels": (hiding(DATA, torch.arange(60)), SHARED, "recipe.data"),
    "unknown classes cannot be balanced": (PARTLY, KD | UNKNOWN | {"sampler": "class_balanced"}, "recipe.sampler"),
    "a mixed target without a label cannot be smoothed": (
        PARTLY, KD | UNKNOWN | {"mixup": {}, "label_smoothing": 0.1}, "recipe.label_smoothing",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_meaning_with_these_labels_is_refused(case: str) -> None:
    data, changes, place = REFUSED[case]
    with pytest.raises(UserError, match=rf"^{place}: "):
        state_on(data, recipe(**changes))


HIDING = {"data": SHARED["data"]}


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        (HIDING | {"labelled_share": 0.5}, "labelled_share"),
        (KD | {"labelled_share": 0.5}, "labelled_share"),
        (KD | HIDING | {"sampler": "class_balanced"}, "sampler"),
        (KD | HIDING | {"mixup": {}, "label_smoothing": 0.1}, "label_smoothing"),
    ],
)
def test_what_the_recipe_alone_shows_to_have_no_meaning_is_refused(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(ValueError, match=rf"Value error, {key} "):
        recipe(**changes)


@pytest.mark.parametrize("changes", [{"sampler": "class_balanced"}, {"mixup": {}, "label_smoothing": 0.1}])
def test_the_student_alone_may_do_so_with_its_labelled_images(changes: dict[str, Any]) -> None:
    assert fitted(state_on(PARTLY, recipe(**HIDING | changes)))[-1]["step"] == 8


def test_without_labels_a_student_can_learn_from_its_teacher_alone() -> None:
    config = recipe(**KD | {"method": KD["method"] | {"balance": {"alpha": 1.0}}})
    (first, *_) = fitted(state_on(hiding(DATA, torch.arange(60)), config))
    assert first["train/cross_entropy"] == 0
    assert first["train/loss"] == pytest.approx(first["train/kd"])
