"""The trained networks that pictures show, each loaded once, and the images that they show them on."""

from collections.abc import Hashable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from kdtrain.config.recipe import Recipe, teacher_recipe
from kdtrain.data.base import Dataset, Split
from kdtrain.models.build import build
from kdtrain.models.classifier import Classifier
from kdtrain.models.weights import load_whole_network
from kdtrain.runtime.rng import generator
from kdtrain.teacher.network import trained_teacher
from kdtrain.training.evaluation import logits_of
from kdtrain.trials.workspace import Workspace

Arrays = dict[str, np.ndarray]
IMAGES_SHOWN = 4
LARGEST_PX = 224


class Networks:
    """Of recipes that have kept their weights: in evaluation mode on the CPU, no parameter asking for a gradient."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = replace(workspace, device=torch.device("cpu"))
        self._loaded: dict[Hashable, Classifier] = {}

    def of(self, recipe: Recipe) -> Classifier:
        """The recipe's student."""
        if recipe not in self._loaded:
            data = self._workspace.dataset(recipe.data)
            network = build(recipe.student, data.image_shape, len(data.classes), 0, pretrained=False)
            load_whole_network(network, self._workspace.trial(recipe).weights, "recipe.student")
            self._loaded[recipe] = _only_read(network)
        return self._loaded[recipe]

    def teacher_of(self, recipe: Recipe) -> Classifier:
        """The recipe must have a teacher."""
        known = teacher_recipe(recipe) or (recipe.data, recipe.teacher)
        if known not in self._loaded:
            data = self._workspace.dataset(recipe.data)
            teacher = trained_teacher(recipe, data, self._workspace)
            assert teacher is not None
            self._loaded[known] = _only_read(teacher.network)
        return self._loaded[known]

    def val_logits_of_teacher(self, recipe: Recipe) -> Tensor:
        """[N, K]: as it left them when its test split was read, else computed."""
        taught_by = teacher_recipe(recipe)
        if taught_by is not None:
            predictions = self._workspace.trial(taught_by).predictions
            if predictions.exists():
                with np.load(predictions) as kept:
                    return torch.from_numpy(kept["val_logits"])
        return logits_of(self.teacher_of(recipe), self._workspace.dataset(recipe.data).val, torch.device("cpu"))

    def trio(self, recipe: Recipe, compared: Sequence[Recipe]) -> dict[str, tuple[Recipe, Classifier]]:
        """{role: (its recipe, network)} of what a picture shows side by side; "alone" only where there is one."""
        shown = {"distilled": (recipe, self.of(recipe)), "teacher": (recipe, self.teacher_of(recipe))}
        alone = student_alone(recipe, compared)
        return shown if alone is None else shown | {"alone": (alone, self.of(alone))}


def _only_read(network: Classifier) -> Classifier:
    """A few images are not worth compiling for."""
    network.compiled = False
    return network.eval().requires_grad_(False)


def student_alone(recipe: Recipe, compared: Sequence[Recipe]) -> Recipe | None:
    """The first of the recipes without a teacher that has the same student; else the first of the same model, frozen
    otherwise."""
    alone = [other for other in compared if other.teacher is None and other.data == recipe.data]
    same = [other for other in alone if other.student == recipe.student]
    of_model = [other for other in alone if other.student.model == recipe.student.model]
    return next(iter(same + of_model), None)


def shown_indices(split: Split, seed: int) -> Tensor:
    """The images of a split that pictures show: always the same few, drawn by the seed of the splits."""
    return torch.randperm(len(split), generator=generator(seed, "pictures"))[:IMAGES_SHOWN]


def class_names(data: Dataset, labels: Tensor) -> np.ndarray:
    """Of labels int64 of any shape."""
    named: np.ndarray = np.array(data.classes)[labels.numpy()]
    return named


def drawable(images_NCHW: Tensor) -> np.ndarray:
    """uint8 [N, H, W] or [N, H, W, 3], at most 224 pixels high and wide, from values in [0, 1]."""
    pixels = (limited(images_NCHW) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    grey = pixels.shape[3] == 1
    return np.ascontiguousarray(pixels[..., 0] if grey else pixels)


def limited(maps_NCHW: Tensor) -> Tensor:
    """Maps or images at most 224 pixels high and wide."""
    scale = LARGEST_PX / max(maps_NCHW.shape[2:])
    if scale >= 1:
        return maps_NCHW
    size = [round(scale * length) for length in maps_NCHW.shape[2:]]
    return functional.interpolate(maps_NCHW, size, mode="area")
