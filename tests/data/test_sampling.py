"""The order of images and the weights of classes, from labels alone."""

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight

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
