"""The trained networks of the pictures, and the images that the pictures show."""

from collections.abc import Hashable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from kdtrain.config.needed_trainings import recipes_by_teacher, teacher_recipe
from kdtrain.config.recipe import Recipe
from kdtrain.data.base import Dataset, Split
from kdtrain.models.build import build
from kdtrain.models.classifier import Classifier
from kdtrain.models.weights import load_whole_network
from kdtrain.runtime.rng import generator
from kdtrain.teacher.ensemble import combined_logits
from kdtrain.teacher.network import trained_teacher
from kdtrain.training.evaluation import logits_of
from kdtrain.trials.arrays import read_predictions
from kdtrain.trials.workspace import Workspace

Arrays = dict[str, np.ndarray]
IMAGES_SHOWN = 4
LARGEST_PX = 224


class Networks:
    """The networks of recipes with kept weights, each loaded once, in evaluation mode on the CPU, without gradients."""

    def __init__(self, workspace: Workspace) -> None:
        self.device = torch.device("cpu")
        self._workspace = replace(workspace, device=self.device)
        self._loaded: dict[Hashable, Classifier] = {}

    def of(self, recipe: Recipe) -> Classifier:
        """Return the recipe's student."""
        if recipe not in self._loaded:
            data = self._workspace.dataset(recipe.data)
            network = build(recipe.student, data.image_shape, len(data.classes), 0, pretrained=False)
            load_whole_network(network, self._workspace.trial(recipe).weights, "recipe.student")
            self._loaded[recipe] = _for_evaluation(network)
        return self._loaded[recipe]

    def teacher_of(self, recipe: Recipe) -> Classifier:
        """Return the recipe's one teacher."""
        known = teacher_recipe(recipe) or (recipe.data, recipe.teacher)
        if known not in self._loaded:
            data = self._workspace.dataset(recipe.data)
            teacher = trained_teacher(recipe, data, self._workspace)
            self._loaded[known] = _for_evaluation(teacher.network)
        return self._loaded[known]

    def teacher_logits(self, recipe: Recipe, images_NCHW: Tensor) -> Tensor:
        """Return the logits [N, K] of the recipe's teacher, or of its ensemble as its method gets them."""
        return combined_logits(recipe, [self.teacher_of(each)(images_NCHW) for each in recipes_by_teacher(recipe)])

    def val_logits_of_teacher(self, recipe: Recipe) -> Tensor:
        """Return the same for the validation split."""
        return combined_logits(recipe, [self._val_logits_of_teacher(each) for each in recipes_by_teacher(recipe)])

    def _val_logits_of_teacher(self, recipe: Recipe) -> Tensor:
        """Return one teacher's validation logits [N, K], stored by its evaluation on the same data or else computed."""
        taught_by = teacher_recipe(recipe)
        if taught_by is not None and taught_by.data == recipe.data:
            kept = read_predictions(self._workspace.trial(taught_by))
            if "val_logits" in kept:
                return torch.from_numpy(kept["val_logits"])
        return logits_of(self.teacher_of(recipe), self._workspace.dataset(recipe.data).val, self.device)

    def trio(self, recipe: Recipe, compared: Sequence[Recipe]) -> dict[str, tuple[str, Classifier]]:
        """Return {role: (what is frozen, network)}.

        The role "alone" is absent if there is no such student, the role "teacher" if an ensemble has no one network.
        """
        shown: dict[str, tuple[str, Classifier]] = {"distilled": (recipe.student.freeze, self.of(recipe))}
        if recipe.ensemble is None:
            shown["teacher"] = (recipe.teachers[0].freeze, self.teacher_of(recipe))
        alone = student_alone(recipe, compared)
        return shown if alone is None else shown | {"alone": (alone.student.freeze, self.of(alone))}


def _for_evaluation(network: Classifier) -> Classifier:
    """Return the network without gradients and uncompiled: compiling takes longer than a few images."""
    network.compiled = False
    return network.eval().requires_grad_(False)


def student_alone(recipe: Recipe, compared: Sequence[Recipe]) -> Recipe | None:
    """Return the first recipe without a teacher and with the same student, else with the same model, or None."""
    alone = [other for other in compared if other.teacher is None and other.data == recipe.data]
    same = [other for other in alone if other.student == recipe.student]
    of_model = [other for other in alone if other.student.model == recipe.student.model]
    return next(iter(same + of_model), None)


def shown_indices(split: Split, seed: int) -> Tensor:
    """Return the few images that pictures show of a split; they depend only on the split seed."""
    return torch.randperm(len(split), generator=generator(seed, "pictures"))[:IMAGES_SHOWN]


def class_names(data: Dataset, labels: Tensor) -> np.ndarray:
    """Return the class names of labels, int64 of any shape."""
    named: np.ndarray = np.array(data.classes)[labels.numpy()]
    return named


def drawable(images_NCHW: Tensor) -> np.ndarray:
    """Return uint8 [N, H, W] or [N, H, W, 3], at most 224 pixels high and wide, of images in [0, 1]."""
    pixels = (limited(images_NCHW) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    grey = pixels.shape[3] == 1
    return np.ascontiguousarray(pixels[..., 0] if grey else pixels)


def limited(maps_NCHW: Tensor) -> Tensor:
    """Return maps or images [N, C, H, W], reduced to at most 224 pixels in height and width."""
    scale = LARGEST_PX / max(maps_NCHW.shape[2:])
    if scale >= 1:
        return maps_NCHW
    size = [round(scale * length) for length in maps_NCHW.shape[2:]]
    return functional.interpolate(maps_NCHW, size, mode="area")
