"""Mixup: partners and shares belong to images, not to batches; but for the published convention."""

import pytest
import torch

from kdtrain.data.mixup import Mixup, mixed, mixed_target, pairing
from kdtrain.runtime.rng import generator

CORRECTED, PUBLISHED = Mixup(), Mixup(convention="published")
TOTAL = 50


def whole(seed: int = 0, epoch: int = 0, total: int = TOTAL):
    return pairing(CORRECTED, torch.arange(total), total, seed, epoch, step=0)


def test_corrected_pairs_do_not_depend_on_batch_size_order_or_step() -> None:
    expected = whole()
    order = torch.randperm(TOTAL, generator=torch.Generator().manual_seed(1))
    for batch_size in (1, 7, 16, TOTAL):
        for step, batch in enumerate(order.split(batch_size)):
            pair = pairing(CORRECTED, batch, TOTAL, seed=0, turns=0, step=step)
            assert torch.equal(pair.partners, expected.partners[batch])
            assert torch.equal(pair.shares, expected.shares[batch])


@pytest.mark.parametrize("total", [2, 3, 50, 1020])
def test_every_image_is_the_partner_of_exactly_one_other(total: int) -> None:
    for epoch in range(5):
        partners = whole(epoch=epoch, total=total).partners
        assert partners.dtype == torch.int64
        assert torch.equal(partners.sort().values, torch.arange(total))
        assert (partners != torch.arange(total)).all()


def test_a_single_image_is_mixed_with_itself() -> None:
    assert whole(total=1).partners.tolist() == [0]


def test_corrected_shares_are_the_larger_of_two_uniform_parts() -> None:
    shares = torch.cat([whole(epoch=epoch, total=1000).shares for epoch in range(20)])
    assert shares.dtype == torch.float32
    assert shares.min() >= 0.5
    assert shares.max() < 1.0001
    assert abs(shares.mean() - 0.75) < 0.005  # the mean of max(u, 1 - u)


def test_pairs_and_shares_change_with_seed_and_epoch() -> None:
    draws = [whole(), whole(seed=1), whole(epoch=1)]
    assert len({draw.partners.numpy().tobytes() for draw in draws}) == 3
    assert len({draw.shares.numpy().tobytes() for draw in draws}) == 3


@pytest.mark.parametrize("mixup", [CORRECTED, PUBLISHED])
def test_a_pairing_depends_on_nothing_drawn_before_and_disturbs_nothing(mixup: Mixup) -> None:
    batch = torch.tensor([4, 9, 2])
    first = pairing(mixup, batch, TOTAL, 0, 3, 12)
    state = torch.random.get_rng_state()
    second = pairing(mixup, batch, TOTAL, 0, 3, 12)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(first.partners, second.partners)
    assert torch.equal(first.shares, second.shares)


def test_published_pairs_are_the_reversed_batch_under_one_share_of_the_step() -> None:
    batch = torch.tensor([5, 0, 8, 3])
    pair = pairing(PUBLISHED, batch, TOTAL, seed=2, turns=1, step=7)
    assert pair.partners.tolist() == [3, 8, 0, 5]
    assert torch.equal(pair.shares, torch.rand((), generator=generator(2, "mixup", 7)).repeat(4))
    shares = [pairing(PUBLISHED, batch, TOTAL, 2, 1, step).shares[0].item() for step in range(2000)]
    assert len(set(shares)) > 1990
    assert min(shares) < 0.01  # uniform from 0, not from a half
    assert pairing(PUBLISHED, batch, TOTAL, 3, 1, 7).shares[0] != pair.shares[0]


def test_mixed_images_and_targets_follow_the_formula() -> None:
    images, partners = torch.rand(3, 2, 4, 4), torch.rand(3, 2, 4, 4)
    shares = torch.tensor([0.5, 0.75, 1.0])
    result = mixed(images, partners, shares)
    for i, share in enumerate(shares.tolist()):
        torch.testing.assert_close(result[i], share * images[i] + (1 - share) * partners[i])
    assert torch.equal(result[2], images[2])
    target = mixed_target(torch.tensor([0, 1, 2]), torch.tensor([1, 1, 0]), shares, 4)
    assert target.dtype == torch.float32
    assert target.tolist() == [[0.5, 0.5, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]
