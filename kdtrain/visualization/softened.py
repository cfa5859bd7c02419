"""Softened outputs: one validation image and what both networks make of it at two temperatures."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from kdtrain.config.recipe import Recipe
from kdtrain.data.base import Dataset, as_floats
from kdtrain.visualization.networks import Arrays, Networks, drawable


def softened(recipe: Recipe, data: Dataset, networks: Networks) -> Arrays:
    """softmax(logits / T) of teacher and student at T = 1 and at the recipe's own T, and the names of the classes [K].
    Nothing where the recipe has no T."""
    temperature = getattr(recipe.method, "temperature", None)
    if recipe.teacher is None or temperature is None:
        return {}
    teacher, student = networks.teacher_of(recipe), networks.of(recipe)
    logits = networks.val_logits_of_teacher(recipe)
    if not (logits.argmax(1) == data.val.labels).any():
        return {"softened_reason": np.array("the teacher gets no validation image right")}
    index = _least_sure(logits, data.val.labels)
    image = as_floats(data.val.images.eval_view(index))
    temperatures = (1.0, temperature)
    with torch.inference_mode():
        arrays = {
            "softened_label": data.val.labels[index][0],
            "softened_temperatures": torch.tensor(temperatures),
            "softened_teacher": torch.stack([_softmax(teacher(image), t) for t in temperatures]),
            "softened_student": torch.stack([_softmax(student(image), t) for t in temperatures]),
        }
    shown = {"softened_image": drawable(image)[0], "softened_classes": np.array(data.classes)}
    return shown | {name: value.numpy() for name, value in arrays.items()}


def _least_sure(logits_NK: Tensor, labels_N: Tensor) -> Tensor:
    """The index [1] of the image that the teacher gets right with the least probability: where softening shows most."""
    right = functional.softmax(logits_NK, dim=1).gather(1, labels_N[:, None])[:, 0]
    wrong = logits_NK.argmax(1) != labels_N
    return right.masked_fill(wrong, 2.0).argmin()[None]


def _softmax(logits_1K: Tensor, temperature: float) -> Tensor:
    return functional.softmax(logits_1K[0].float() / temperature, dim=0)
