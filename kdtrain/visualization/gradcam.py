"""Grad-CAM++ maps of an image's class in the distilled student, the teacher and the student alone."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from kdtrain.config.recipe import Recipe
from kdtrain.data.base import Dataset, as_floats
from kdtrain.models.classifier import Classifier
from kdtrain.visualization.networks import Arrays, Networks, class_names, drawable, limited, shown_indices

SMALLEST_MAP = 4
"""Pixels of the shorter side of a map; a smaller one, drawn over the image, is a blur that marks no place."""


def gradcam(recipe: Recipe, compared: Sequence[Recipe], data: Dataset, networks: Networks) -> Arrays:
    """Return the Grad-CAM++ maps of M networks for N test images, with the classes that they predict [M, N]."""
    name = f"gradcam_{recipe.student.freeze}"
    shown = networks.trio(recipe, compared)
    stages = {role: deepest_stage(network) for role, (_, network) in shown.items()}
    without_map = [network.name for role, (_, network) in shown.items() if stages[role] is None]
    if without_map:
        reason = f"{without_map[0]} has no stage whose map has at least {SMALLEST_MAP} x {SMALLEST_MAP} pixels"
        return {f"{name}_reason": np.array(reason)}
    indices = shown_indices(data.test, recipe.data.split_seed)
    images, labels = as_floats(data.test.images.eval_view(indices)), data.test.labels[indices]
    try:
        maps = [gradcam_maps(network, stages[role] or "", images, labels) for role, (_, network) in shown.items()]
    except ImportError as error:  # it is not installed, or OpenCV lacks a library of the system
        reason = f"Grad-CAM needs the extra `pictures`, pip install 'kdtrain[pictures]' ({error})"
        return {f"{name}_reason": np.array(reason)}
    with torch.inference_mode():
        named = torch.stack([network(images).argmax(1) for _, network in shown.values()])
    arrays = {
        "images": drawable(images),
        "classes": class_names(data, labels),
        "roles": np.array(list(shown)),
        "models": np.array([network.name for _, network in shown.values()]),
        "freezes": np.array([freeze for freeze, _ in shown.values()]),
        "stages": np.array(list(stages.values())),
        "sizes": np.array([_size(network, stages[role] or "") for role, (_, network) in shown.items()]),
        "named": class_names(data, named),
        "right": (named == labels).numpy(),
        "maps": limited(torch.stack(maps)).numpy(),
    }
    return {f"{name}_{part}": array for part, array in arrays.items()}


def gradcam_maps(network: Classifier, stage: str, images_NCHW: Tensor, labels_N: Tensor) -> Tensor:
    """Return Grad-CAM++ (Chattopadhyay et al. 2018, arXiv:1710.11063, equations 10 and 19), each map in [0, 1]."""
    from pytorch_grad_cam import GradCAMPlusPlus
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    # frozen parameters need no gradient; pixels that need one bring it to the stage's map
    pixels = images_NCHW.clone().requires_grad_(True)
    with GradCAMPlusPlus(network, [network.module_at(stage)]) as cam:
        maps = cam(pixels, [ClassifierOutputTarget(label) for label in labels_N.tolist()])
    return torch.from_numpy(maps)


def deepest_stage(network: Classifier) -> str | None:
    """Return the last stage whose map has at least SMALLEST_MAP pixels on each side, or None."""
    maps = [stage for stage in network.stages if stage != "pool" and min(_size(network, stage)) >= SMALLEST_MAP]
    return maps[-1] if maps else None


def _size(network: Classifier, stage: str) -> tuple[int, ...]:
    return network.stage_shapes((stage,))[stage][1:]
