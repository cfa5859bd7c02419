"""Attention maps: where the feature maps that a method compares have their energy, in each of the networks."""

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
    """Of a recipe whose method reads maps, under `attention_...`; nothing for any other.

    images uint8 [N, H, W, 3] of the validation split and the names of their classes [N]; roles, models and freezes of
    the networks [M]; stages [S]; maps_<stage>_<role> float32 [N, H, W], all of a stage in the same units.
    """
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
        "freezes": np.array([own.student.freeze for own, _ in shown.values()]),
        "stages": np.array(stages),
    }
    for role, (_, network) in shown.items():
        maps = attention_maps(network, stages, images)
        arrays |= {f"maps_{stage}_{role}": maps[stage].numpy() for stage in stages}
    return {f"attention_{part}": array for part, array in arrays.items()}


@torch.inference_mode()
def attention_maps(network: Classifier, stages: tuple[str, ...], images_NCHW: Tensor) -> dict[str, Tensor]:
    """q(F) = vec(mean_C F^2) / ||.||_2 at each stage, as `at` compares it, in its place again: float32 [N, H, W]."""
    _, features = network.outputs(images_NCHW, stages)
    return {stage: attention_map(maps).unflatten(1, maps.shape[2:]) for stage, maps in features.items()}
