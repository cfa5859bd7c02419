"""Softened outputs: one validation image and the softmax outputs of both networks at two temperatures."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from kdtrain.config.recipe import Recipe
from kdtrain.data.base import Dataset, as_floats
from kdtrain.visualization.networks import Arrays, Networks, drawable


def softened(recipe: Recipe, data: Dataset, networks: Networks) -> Arrays:
    """Return softmax(logits / T) [2, K] of both networks at T = 1 and at the recipe's T, or {} if it has no T."""
    temperature = getattr(recipe.method, "temperature", None)
    if recipe.teacher is None or temperature is None:
        return {}
    student = networks.of(recipe)
    logits = networks.val_logits_of_teacher(recipe)
    if not (logits.argmax(1) == data.val.labels).any():
        return {"softened_reason": np.array("the teacher classifies no validation image correctly")}
    index = _least_confident(logits, data.val.labels)
    image = as_floats(data.val.images.eval_view(index))
    temperatures = (1.0, temperature)
    with torch.no_grad():  # not inference mode, in which a network that is read here could have no gradients later
        of_teacher = networks.teacher_logits(recipe, image)
        arrays = {
            "softened_label": data.val.labels[index][0],
            "softened_temperatures": torch.tensor(temperatures),
            "softened_teacher": torch.stack([_softmax(of_teacher, t) for t in temperatures]),
            "softened_student": torch.stack([_softmax(student(image), t) for t in temperatures]),
        }
    shown = {"softened_image": drawable(image)[0], "softened_classes": np.array(data.classes)}
    return shown | {name: value.numpy() for name, value in arrays.items()}


def _least_confident(logits_NK: Tensor, labels_N: Tensor) -> Tensor:
    """Return the index [1] of the correctly classified image with the least probability: softening shows most there."""
    right = functional.softmax(logits_NK, dim=1).gather(1, labels_N[:, None])[:, 0]
    wrong = logits_NK.argmax(1) != labels_N
    return right.masked_fill(wrong, 2.0).argmin()[None]


def _softmax(logits_1K: Tensor, temperature: float) -> Tensor:
    return functional.softmax(logits_1K[0].float() / temperature, dim=0)
