"""Teacher: a trained network that is only read. Evaluation mode, no gradient, never in a student's checkpoint."""

import time
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from kdtrain.config.recipe import Recipe, teacher_recipe
from kdtrain.config.recipe import Teacher as TeacherConfig
from kdtrain.data.base import Dataset
from kdtrain.methods.base import Outputs
from kdtrain.models.build import build
from kdtrain.models.classifier import Classifier
from kdtrain.models.source import ImageShape
from kdtrain.models.weights import content_digest, load_whole_network
from kdtrain.runtime.rng import stream
from kdtrain.trials.identity import trial_id
from kdtrain.trials.store import Store

CHUNK_IMAGES = 32
"""So many images go through a teacher at once, the last chunk filled up: then what it says of an image depends on that
image alone, bit for bit, whatever the batch. (Chunks of 16 and more agree on a CPU, smaller ones differ by 1e-6.)"""


class Teacher:
    """Answers with Outputs for images [N, C, H, W]; counts the images that it was asked, and the seconds that this took
    (on a GPU without what still runs there)."""

    def __init__(
        self, network: Classifier, device: torch.device, stages: tuple[str, ...] = (), digest: str | None = None
    ) -> None:
        """digest: of the file that its weights came from; None for weights that no file has."""
        self.digest = digest
        self.network = network.eval().requires_grad_(False).to(device)
        self.stages = stages
        self.images = 0
        self.seconds = 0.0

    def __call__(self, images: Tensor) -> Outputs:
        started = time.perf_counter()
        with torch.inference_mode():
            parts = [self._chunk(chunk) for chunk in images.split(CHUNK_IMAGES)]
        # copies outside of it: a loss may keep these tensors for its backward
        logits = torch.cat([logits for logits, _ in parts])
        features = {stage: torch.cat([maps[stage] for _, maps in parts]) for stage in self.stages}
        self.images, self.seconds = self.images + len(images), self.seconds + time.perf_counter() - started
        return Outputs(logits, features)

    def _chunk(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        count = len(images)
        if count < CHUNK_IMAGES:
            images = torch.cat([images, images.new_zeros((CHUNK_IMAGES - count, *images.shape[1:]))])
        logits, features = self.network.outputs(images, self.stages)
        return logits[:count], {stage: maps[:count] for stage, maps in features.items()}


def trained_teacher(
    recipe: Recipe, data: Dataset, store: Store, data_root: Path, device: torch.device
) -> Teacher | None:
    """The recipe's teacher with its trained weights, from its file or from the store."""
    if recipe.teacher is None:
        return None
    taught_by = teacher_recipe(recipe)
    if taught_by is None:
        assert recipe.teacher.file is not None
        weights, place = Path(recipe.teacher.file), "recipe.teacher.file"
    else:
        weights, place = store.trial(trial_id(taught_by, data_root)).weights, "recipe.teacher"
    digest = content_digest(weights, place)
    compiled_for = recipe.method.needed_stages if recipe.teacher.compile else ()
    network = _read_once(recipe.teacher, data.image_shape, len(data.classes), weights, place, digest, compiled_for)
    return Teacher(network, device, recipe.method.needed_stages, digest)


@lru_cache(maxsize=1)
def _read_once(
    teacher: TeacherConfig,
    shape: ImageShape,
    classes: int,
    weights: Path,
    place: str,
    digest: str,
    compiled_for: tuple[str, ...],
) -> Classifier:
    """The trained network, ready to answer: a process that trains one student after the other reads it once, as long as
    its file has the same digest."""
    network = build(teacher, shape, classes, stream(teacher.seed, "init"), pretrained=False, place="recipe.teacher")
    load_whole_network(network, weights, place)
    return network


def fresh_teacher(recipe: Recipe, data: Dataset, *, pretrained: bool = False) -> Classifier:
    """The recipe's teacher network before its trained weights are read; pretrained: as its training begins."""
    assert recipe.teacher is not None
    seed, shape, classes = stream(recipe.teacher.seed, "init"), data.image_shape, len(data.classes)
    return build(recipe.teacher, shape, classes, seed, pretrained=pretrained, place="recipe.teacher")
