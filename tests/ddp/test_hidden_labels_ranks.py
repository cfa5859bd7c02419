"""Trainings with hidden labels on 2 and 4 real processes have the losses and weights of one process.

60 images in batches of 19, 19, 19 and 3, of which one of four ranks has no share. A rank's share of a batch may have no
label, and so may a whole batch.
"""

from functools import cache
from typing import Any

import pytest
import torch
from groups import Group
from runs import fitted, hiding, state_of, state_on
from torch import Tensor
from trainings import ALONE, KD, NO_DATA, recipe

from kdtrain.data.registry import load

pytestmark = pytest.mark.ddp

WEIGHTS = [0.5, 1.0, 2.0, 3.0, 1.0, 1.0, 0.25, 1.0, 4.0, 1.0]
DKD = KD | {"method": {"name": "dkd", "balance": {"weight": 1.0}}}
SP = {"teacher": KD["teacher"], "method": {"name": "sp", "balance": {"weight": 100.0}, "stages": ["4"]}}
HIDING = {"data": ALONE["data"] | {"labelled_per_class": 1}}
TRAININGS: dict[str, tuple[dict[str, Any], int]] = {
    "alone": ({"mixup": {}, "class_weights": "balanced"}, 12),
    "kd": (KD | {"label_smoothing": 0.1}, 12),
    "kd, three labels": (KD, 3),
    "dkd, class weights": (DKD | {"class_weights": WEIGHTS}, 12),
    "mixup": (KD | {"mixup": {}, "class_weights": WEIGHTS}, 12),
    "sp, labelled share": (SP | HIDING | {"labelled_share": 0.2}, 12),
}
"""Changes of the recipe, and the number of labels."""


def learned(changes: dict[str, Any], labels: int) -> dict[str, Tensor]:
    config = recipe(**changes | {"batch_size": 19, "epochs": 2})
    data = load(recipe().data, NO_DATA)
    hidden = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(0))[labels:]
    state = state_on(hiding(data, hidden), config)
    rows = fitted(state)
    losses = {
        f"{name} {epoch}": torch.tensor(value)
        for epoch, row in enumerate(rows) for name, value in row.items() if name.startswith("train/")
    }  # fmt: skip
    return losses | state_of(state.distiller)


@cache
def results() -> dict[str, dict[str, Tensor]]:
    return {name: learned(*training) for name, training in TRAININGS.items()}


@pytest.mark.parametrize("name", TRAININGS)
def test_ranks_learn_from_few_labels_what_one_process_learns(name: str, group: Group) -> None:
    for of_rank in group.of(__name__):
        torch.testing.assert_close(of_rank[name], results()[name], rtol=1e-4, atol=1e-5)
