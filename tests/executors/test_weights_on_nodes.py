"""A node of a cluster that lacks a file of weights."""

from pathlib import Path

import pytest
import torch
from trainings import KD, recipe

from kdtrain.executors.ray_worker import UnfitNode, require_fit_node


def test_a_node_without_a_file_of_weights_is_unfit_and_named(tmp_path: Path) -> None:
    config = {"results": "s3://bucket/results", "data": str(tmp_path), "code": {}}
    places = {
        "recipe.teacher.trained": {"teacher": {"model": "lenet5_teacher", "trained": str(tmp_path / "w.pth")}},
        "recipe.teacher.weights.file": {
            "teacher": {"model": "lenet5_teacher", "weights": {"file": str(tmp_path / "w.pth")}}
        },
        "recipe.student.weights.file": {
            "student": {"model": "lenet5_student", "weights": {"file": str(tmp_path / "w.pth")}}
        },
    }
    for place, changes in places.items():
        with pytest.raises(
            UnfitNode, match=rf"^node .*: {place}: .* cannot be read .*; every node needs the file under"
        ):
            require_fit_node(config, recipe(**KD | changes))
    torch.save({}, tmp_path / "w.pth")
    for changes in places.values():
        require_fit_node(config, recipe(**KD | changes))
