"""The memory of a GPU that a preflight check measures. Skipped where there is no GPU."""

from pathlib import Path

import pytest
import torch
from trainings import recipe, workspace

from kdtrain.training.preflight import smoke

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]


def test_the_peak_grows_with_the_batch_and_earlier_work_of_the_process_leaves_nothing_in_it(tmp_path: Path) -> None:
    data = {"name": "digits", "resolution": 64, "limit_per_class": 6}
    place = workspace(tmp_path, device=torch.device("cuda"))

    def measured(batch_size: int) -> int:
        config = recipe(data=data, student={"model": "resnet18", "weights": None}, batch_size=batch_size)
        return smoke(config, place)["gpu_bytes"]

    small, large, again = measured(4), measured(40), measured(4)
    assert 0 < small < large
    assert abs(again - small) < 0.1 * small
