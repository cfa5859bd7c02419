"""What needs networks to be drawn, as arrays that analysis draws: one validation image, softened by both networks."""

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from kdtrain.config.recipe import Recipe
from kdtrain.data import load
from kdtrain.data.base import as_floats
from kdtrain.evaluate import logits_of
from kdtrain.identity import trial_id
from kdtrain.models import build
from kdtrain.models.weights import load_whole_network
from kdtrain.predictions import write_arrays
from kdtrain.store import Store
from kdtrain.teacher import trained_teacher


def draw_arrays(recipe: Recipe, store: Store, data_root: Path, folder: Path) -> None:
    """Writes pictures.npz for a winning recipe: softmax(logits / T) of teacher and student at T = 1 and its own T."""
    temperature = getattr(recipe.method, "temperature", None)
    data = load(recipe.data, data_root)
    teacher = trained_teacher(recipe, data, store, data_root, torch.device("cpu"))
    if teacher is None or temperature is None:
        return
    student = build(recipe.student, data.image_shape, len(data.classes), 0, pretrained=False).eval()
    load_whole_network(student, store.trial(trial_id(recipe, data_root)).weights, "recipe.student")
    index = _least_sure(logits_of(teacher.network, data.val, torch.device("cpu")), data.val.labels)
    image = as_floats(data.val.images.eval_view(index))
    temperatures = (1.0, temperature)
    with torch.inference_mode():
        arrays = {
            "softened_image": _drawable(image[0]),
            "softened_label": data.val.labels[index][0],
            "softened_temperatures": torch.tensor(temperatures),
            "softened_teacher": torch.stack([_softmax(teacher.network(image), t) for t in temperatures]),
            "softened_student": torch.stack([_softmax(student(image), t) for t in temperatures]),
        }
    write_arrays(folder / "pictures.npz", {name: value.numpy() for name, value in arrays.items()})


def _least_sure(logits_NK: Tensor, labels_N: Tensor) -> Tensor:
    """The index [1] of the image that the teacher gets right with the least probability: where softening shows most."""
    right = functional.softmax(logits_NK, dim=1).gather(1, labels_N[:, None])[:, 0]
    wrong = logits_NK.argmax(1) != labels_N
    return right.masked_fill(wrong, 2.0).argmin()[None]


def _softmax(logits_1K: Tensor, temperature: float) -> Tensor:
    return functional.softmax(logits_1K[0].float() / temperature, dim=0)


def _drawable(image_CHW: Tensor) -> Tensor:
    """uint8 [H, W] or [H, W, 3] from values in [0, 1]."""
    pixels = (image_CHW * 255).round().to(torch.uint8).permute(1, 2, 0)
    return pixels[:, :, 0] if pixels.shape[2] == 1 else pixels
