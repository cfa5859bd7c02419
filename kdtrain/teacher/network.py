"""The teacher: a trained network in evaluation mode, without gradients. It is never part of a student's checkpoint."""

import time
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from kdtrain.config.needed_trainings import recipes_by_teacher, teacher_recipe
from kdtrain.config.recipe import Recipe
from kdtrain.config.teacher import Teacher as TeacherConfig
from kdtrain.data.base import Dataset
from kdtrain.methods.base import Outputs
from kdtrain.models.build import build
from kdtrain.models.classifier import Classifier
from kdtrain.models.source import ImageShape
from kdtrain.models.weights import content_digest, load_whole_network
from kdtrain.runtime.rng import stream
from kdtrain.trials.identity import finished_teacher_id
from kdtrain.trials.records import TeacherReference
from kdtrain.trials.workspace import Workspace

CHUNK_IMAGES = 32
"""Images of one forward pass, the last chunk padded: then an image's outputs do not depend on its batch, bit for bit.
(On a CPU chunks of 16 and more agree; smaller ones differ by 1e-6.)"""


class Teacher:
    """A network that gives Outputs for images [N, C, H, W], with the features of its `stages`.

    `digest` is that of its weights, None without a file, and `reference` what recipe.json has of it; `seconds` leaves
    out what is still running on a GPU.
    """

    def __init__(
        self,
        network: Classifier,
        device: torch.device,
        stages: tuple[str, ...] = (),
        digest: str | None = None,
        reference: TeacherReference | None = None,
    ) -> None:
        self.digest, self.reference = digest, reference
        self.network = network.eval().requires_grad_(False).to(device)
        self.stages = stages
        self.images = 0
        self.seconds = 0.0

    def __call__(self, images: Tensor) -> Outputs:
        started = time.perf_counter()
        with torch.inference_mode():
            parts = [self._chunk(chunk) for chunk in images.split(CHUNK_IMAGES)]
        # concatenate outside inference mode: a loss may save these tensors for its backward
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


def trained_teacher(recipe: Recipe, data: Dataset, workspace: Workspace) -> Teacher:
    """Return a recipe's one teacher; see `trained_teachers`."""
    (teacher,) = trained_teachers(recipe, data, workspace)
    return teacher


def trained_teachers(recipe: Recipe, data: Dataset, workspace: Workspace) -> tuple[Teacher, ...]:
    """Return the recipe's teachers with their trained weights, from their files or from the store; it may have none.

    Raises:
        UserError: The weights are absent or do not fit the network.
    """
    if recipe.teacher is None:
        return ()
    found = [_weights_of(each, data, workspace) for each in recipes_by_teacher(recipe)]
    networks = _read_networks(tuple(trained for trained, _ in found))
    return tuple(
        Teacher(network, workspace.device, recipe.method.needed_stages, trained.digest, reference)
        for network, (trained, reference) in zip(networks, found, strict=True)
    )


class _Trained(NamedTuple):
    """What a trained network is read from.

    `digest` and `compiled_stages` are only part of the cache's key: the file may change, and a compiled network returns
    the stages that it was compiled for.
    """

    config: TeacherConfig
    shape: ImageShape
    classes: int
    weights: Path
    place: str
    digest: str
    compiled_stages: tuple[str, ...]


def _weights_of(recipe: Recipe, data: Dataset, workspace: Workspace) -> tuple[_Trained, TeacherReference]:
    """Return what a recipe's one teacher is read from, and what recipe.json has of it."""
    (config,) = recipe.teachers
    trained_by = teacher_recipe(recipe)
    reference: TeacherReference
    if trained_by is None:
        assert config.trained is not None
        weights, place = Path(config.trained), "recipe.teacher.trained"
        digest = content_digest(weights, place)
        trial_id = finished_teacher_id(recipe, data)
        reference = {"trial_id": trial_id, "file": config.trained, "sha256": digest}
        if config.weights_key is not None:
            reference["weights_key"] = config.weights_key
            digest += f":{config.weights_key}"
    else:
        trial = workspace.trial(trained_by)
        weights, place = trial.weights, "recipe.teacher"
        digest = content_digest(weights, place)
        reference = {"trial_id": trial.trial_id}
    compiled_stages = recipe.method.needed_stages if config.compile else ()
    shape, classes = config.image_shape(data.image_shape), len(data.classes)
    return _Trained(config, shape, classes, weights, place, digest, compiled_stages), reference


@lru_cache(maxsize=1)
def _read_networks(trained: tuple[_Trained, ...]) -> tuple[Classifier, ...]:
    """Build networks and read their weights; a process that trains one student after the other does it once."""
    return tuple(map(_read_network, trained))


def _read_network(trained: _Trained) -> Classifier:
    config, place = trained.config, "recipe.teacher"
    seed = stream(config.seed, "init")
    network = build(config, trained.shape, trained.classes, seed, pretrained=False, place=place)
    load_whole_network(network, trained.weights, trained.place, config.weights_key)
    return network


def untrained_teacher(config: TeacherConfig, data: Dataset, *, pretrained: bool = False) -> Classifier:
    """Build a teacher network without trained weights; `pretrained`: with those that its training starts from."""
    seed, shape, classes = stream(config.seed, "init"), config.image_shape(data.image_shape), len(data.classes)
    return build(config, shape, classes, seed, pretrained=pretrained, place="recipe.teacher")
