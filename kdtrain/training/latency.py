"""The latency of a student: the time of a forward pass of one image."""

import statistics
import time

import torch

from kdtrain.config.recipe import Recipe
from kdtrain.models.build import build
from kdtrain.models.feature_taps import evaluation_mode
from kdtrain.runtime.device import device_name
from kdtrain.training.precision import backend_settings
from kdtrain.trials.records import LatencyRecord
from kdtrain.trials.workspace import Workspace

WARM_UP, MEASURED = 20, 100
"""Forward passes before the first measured one, and measured ones, of which the median counts."""


def measure_latency(recipe: Recipe, workspace: Workspace) -> LatencyRecord:
    """Return the median time of a forward pass of one image, in float32, on the device of trainings."""
    data, device = workspace.dataset(recipe.data), workspace.device
    network = build(recipe.student, data.image_shape, len(data.classes), recipe.seed, pretrained=False).to(device)
    image = torch.zeros(1, *data.image_shape, device=device)
    times_s = []
    with backend_settings("fp32", device), torch.inference_mode(), evaluation_mode(network):
        for _ in range(WARM_UP + MEASURED):
            _wait_for(device)
            start = time.perf_counter()
            network(image)
            _wait_for(device)
            times_s.append(time.perf_counter() - start)
    return {
        "latency_ms": 1e3 * statistics.median(times_s[WARM_UP:]),
        "device": device_name(device),
        "threads": torch.get_num_threads(),
    }


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
