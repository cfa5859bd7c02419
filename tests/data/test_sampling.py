"""The order of images and the weights of classes, from labels alone."""

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight

from kdtrain.data.base import HIDDEN
from kdtrain.data.sampling import Drawing, class_weights

LABELS = torch.tensor([0] * 50 + [2] * 7 + [3] * 3)[torch.randperm(60, generator=torch.Generator().manual_seed(0))]
"""60 images of four classes, of which the second has none."""


def order(seed: int = 0, epoch: int = 0, labels: torch.Tensor = LABELS) -> torch.Tensor:
    batches = Drawing(seed, 16, "class_balanced").batches(labels, epoch)
    assert [len(batch) for batch in batches] == [16, 16, 16, 12]
    return torch.cat(batches)


def test_each_class_that_has_images_gets_equally_many_of_an_epoch() -> None:
    assert LABELS[order()].bincount().tolist() == [20, 0, 20, 20]


def test_images_that_do_not_divide_go_to_classes_drawn_for_each_epoch() -> None:
    labels = torch.tensor([0] * 40 + [1] * 10 + [2] * 6 + [3] * 4)[:59]
    counts = [torch.cat(Drawing(0, 16, "class_balanced").batches(labels, epoch)) for epoch in range(20)]
    shares = {tuple(labels[drawn].bincount().tolist()) for drawn in counts}
    assert shares == {(14, 15, 15, 15), (15, 14, 15, 15), (15, 15, 14, 15), (15, 15, 15, 14)}


def test_no_image_is_drawn_again_before_all_others_of_its_class() -> None:
    times = order().bincount(minlength=60)
    assert set(times[LABELS == 0].tolist()) == {0, 1}
    assert set(times[LABELS == 2].tolist()) == {2, 3}
    assert set(times[LABELS == 3].tolist()) == {6, 7}


def test_a_large_class_shows_other_images_in_other_epochs_and_an_epoch_can_be_repeated() -> None:
    assert torch.equal(order(), order())
    assert len({tuple(order(seed, epoch).tolist()) for seed in (0, 1) for epoch in range(3)}) == 6
    seen = torch.cat([order(epoch=epoch) for epoch in range(12)])
    assert seen.unique().tolist() == list(range(60))


def test_classes_are_mixed_within_the_batches() -> None:
    for batch in Drawing(0, 20, "class_balanced").batches(LABELS, 0):
        assert len(LABELS[batch].unique()) == 3


def test_with_more_classes_than_images_each_image_may_still_come() -> None:
    labels = torch.arange(5)
    assert torch.cat(Drawing(0, 2, "class_balanced").batches(labels, 0)).sort().values.tolist() == [0, 1, 2, 3, 4]


def test_balanced_weights_are_those_of_scikit_learn_and_zero_for_a_class_without_images() -> None:
    expected = compute_class_weight("balanced", classes=np.array([0, 2, 3]), y=LABELS.numpy())
    weights = class_weights("balanced", LABELS, 4)
    assert weights is not None
    assert weights[[0, 2, 3]].tolist() == pytest.approx(expected.tolist(), rel=1e-6)
    assert weights[1] == 0
    assert weights[LABELS].sum().item() == pytest.approx(60)


def test_written_weights_are_taken_and_none_is_none() -> None:
    assert class_weights((1.0, 2.0), torch.tensor([0, 1]), 2).tolist() == [1.0, 2.0]
    assert class_weights("none", LABELS, 4) is None


PARTLY = LABELS.where(torch.arange(60) % 4 == 1, HIDDEN)
"""Every fourth of the 60 images has its label: 15."""
LABELLED = (PARTLY != HIDDEN).nonzero().flatten().tolist()


def drawn(drawing: Drawing, labels: torch.Tensor = PARTLY, epochs: int = 4) -> list[int]:
    """Return the images of some epochs in their order."""
    return [image for epoch in range(epochs) for batch in drawing.batches(labels, epoch) for image in batch.tolist()]


@pytest.mark.parametrize("share", [None, 0.3, 1.0])
@pytest.mark.parametrize("labelled_only", [False, True])
def test_hidden_labels_change_no_batchs_size(labelled_only: bool, share: float | None) -> None:
    batches = Drawing(0, 16, labelled_only=labelled_only, labelled_share=share).batches(PARTLY, 3)
    assert [len(batch) for batch in batches] == [16, 16, 16, 12]


def test_with_regard_to_no_label_hidden_ones_change_nothing() -> None:
    assert drawn(Drawing(7, 16)) == drawn(Drawing(7, 16), LABELS)
    assert drawn(Drawing(7, 16, labelled_only=True), LABELS) == drawn(Drawing(7, 16), LABELS)


@pytest.mark.parametrize("batch_size", [7, 16, 60])
def test_labelled_images_alone_come_in_one_permutation_after_another_over_the_epochs(batch_size: int) -> None:
    images = drawn(Drawing(0, batch_size, labelled_only=True), PARTLY[:58])  # 58 is no multiple of 15
    rounds = [images[first : first + 15] for first in range(0, len(images), 15)]
    assert all(sorted(each) == LABELLED for each in rounds[:-1])
    assert len({tuple(each) for each in rounds}) == len(rounds) == 16


def test_the_turn_of_an_image_is_how_often_it_was_drawn_before() -> None:
    drawing, labels, seen = Drawing(0, 16, labelled_only=True), PARTLY[:58], [0] * 58
    for epoch in range(4):
        for step, batch in enumerate(drawing.batches(labels, epoch)):
            for image, turn in zip(
                batch.tolist(), drawing.turns(labels, epoch, step, len(batch)).tolist(), strict=True
            ):
                assert turn == seen[image]
                seen[image] += 1


@pytest.mark.parametrize(
    ("drawing", "labels"),
    [
        (Drawing(0, 16), PARTLY), (Drawing(0, 16, labelled_only=True), LABELS),
        (Drawing(0, 16, labelled_share=0.5), PARTLY), (Drawing(0, 16, "class_balanced", labelled_only=True), PARTLY),
    ],
)  # fmt: skip
def test_otherwise_the_turn_is_the_epoch(drawing: Drawing, labels: torch.Tensor) -> None:
    assert drawing.turns(labels, 5, 2, 16).tolist() == [5] * 16


@pytest.mark.parametrize(("share", "counts"), [(0.01, [1, 1]), (0.25, [4, 3]), (0.6, [10, 7]), (1.0, [16, 12])])
def test_each_batch_has_the_share_of_labelled_images(share: float, counts: list[int]) -> None:
    drawing = Drawing(0, 16, labelled_share=share)
    for epoch in range(3):
        found = [int((PARTLY[batch] != HIDDEN).sum()) for batch in drawing.batches(PARTLY, epoch)]
        assert found == [counts[0]] * 3 + [counts[1]]


def test_labelled_and_unlabelled_images_of_a_share_take_turns_of_their_own_over_the_epochs() -> None:
    images = drawn(Drawing(0, 16, labelled_share=0.5), epochs=6)
    for members in (LABELLED, sorted(set(range(60)) - set(LABELLED))):
        own = [image for image in images if image in members]
        rounds = [own[first : first + len(members)] for first in range(0, len(own), len(members))]
        assert all(sorted(each) == members for each in rounds[: len(own) // len(members)])
        assert len({tuple(each) for each in rounds}) == len(rounds)


def test_fewer_labels_than_the_batch_draws_are_repeated_within_it() -> None:
    labels = torch.full((20,), HIDDEN).index_fill(0, torch.tensor([3, 8, 11]), 0)
    for drawing in (Drawing(0, 10, labelled_only=True), Drawing(0, 10, labelled_share=1.0)):
        for batch in drawing.batches(labels, 0):
            assert sorted(batch.bincount()[[3, 8, 11]].tolist()) == [3, 3, 4]


def test_the_classes_of_the_labelled_images_can_be_balanced() -> None:
    batches = Drawing(0, 16, "class_balanced", labelled_only=True).batches(PARTLY, 0)
    assert [len(batch) for batch in batches] == [16, 16, 16, 12]
    present = len(PARTLY[LABELLED].unique())
    assert PARTLY[torch.cat(batches)].bincount().unique().tolist() in ([0, 60 // present], [60 // present])


def test_balanced_weights_count_labelled_images_only() -> None:
    assert torch.equal(class_weights("balanced", PARTLY, 4), class_weights("balanced", PARTLY[LABELLED], 4))
