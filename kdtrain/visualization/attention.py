"""Attention maps: the energy of the feature maps that a method compares, for each network."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from kdtrain.config.recipe import Recipe
from kdtrain.data.base import Dataset, as_floats
from kdtrain.methods.at import attention_map
from kdtrain.models.classifier import Classifier
from kdtrain.visualization.networks import Arrays, Networks, class_names, drawable, shown_indices


def attention(recipe: Recipe, compared: Sequence[Recipe], data: Dataset, networks: Networks) -> Arrays:
    """Return the attention maps [N, H, W] of each network and stage, or {} if the recipe's method reads no maps."""
    if recipe.teacher is None:
        return {}
    shapes = networks.of(recipe).stage_shapes(recipe.method.needed_stages)
    stages = tuple(stage for stage, shape in shapes.items() if len(shape) == 3 and max(shape[1:]) > 1)
    if not stages:
        return {}
    indices = shown_indices(data.val, recipe.data.split_seed)
    images = as_floats(data.val.images.eval_view(indices))
    shown = networks.trio(recipe, compared)
    arrays = {
        "images": drawable(images),
        "classes": class_names(data, data.val.labels[indices]),
        "roles": np.array(list(shown)),
        "models": np.array([network.name for _, network in shown.values()]),
        "stages": np.array(stages),
    }
    for role, (_, network) in shown.items():
        maps = attention_maps(network, stages, images)
        arrays |= {f"maps_{stage}_{role}": maps[stage].numpy() for stage in stages}
    return {f"attention_{part}": array for part, array in arrays.items()}


@torch.inference_mode()
def attention_maps(network: Classifier, stages: tuple[str, ...], images_NCHW: Tensor) -> dict[str, Tensor]:
    """Return q(F) = vec(mean_C F^2) / ||.||_2 [N, h, w] at each stage, the map that `at` compares."""
    _, features = network.outputs(images_NCHW, stages)
    return {stage: attention_map(maps).unflatten(1, maps.shape[2:]) for stage, maps in features.items()}
