"""FLOPs and seconds of an image in a training, measured on made-up images. Needs no data."""

import time
from functools import lru_cache
from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from kdtrain.config.recipe import Recipe
from kdtrain.config.training import Constant, Sgd
from kdtrain.data.base import Dataset, Split, TensorImages
from kdtrain.methods.base import Batch, Outputs
from kdtrain.models.build import build, forward_flops
from kdtrain.models.source import ImageShape
from kdtrain.teacher.network import Teacher
from kdtrain.training.assembly import assemble
from kdtrain.training.loop import load_batch, train_step
from kdtrain.training.state import TrainState

TIMED_STEPS = 5
TIMED_FLOPS = 1e11
"""Upper bound of a timed step: the step of a large network is timed with fewer images than a batch has."""
COUNTED_IMAGES = 2
PLAIN_SGD = Sgd(name="sgd", lr=0.1, momentum=0.0)
BACKWARD_OVER_FORWARD = 2
"""For each product of the forward pass, the backward pass computes two: by the inputs and by the weights."""


class ImageCost(NamedTuple):
    """The cost of an image: its step without the teacher, and the teacher's forward pass (0 without a teacher)."""

    step: float
    teacher: float


def image_flops(recipe: Recipe, classes: int) -> ImageCost:
    """Return the FLOPs of an image in training.

    The step is the forward and backward pass of student and method, both passes of R-Drop, in the student's turn, which
    costs more than a critic's. Freezing, which saves a part of the backward pass, is left out.
    """
    network = {"weights": None, "freeze": "none", "allow_random_frozen": False, "batch_norm_statistics": "update"}
    same = {"optimizer": PLAIN_SGD, "lr_schedule": Constant(name="constant"), "batch_size": COUNTED_IMAGES}
    return _counted(recipe.model_copy(update={**same, "student": recipe.student.model_copy(update=network)}), classes)


@lru_cache(maxsize=256)
def _counted(recipe: Recipe, classes: int) -> ImageCost:
    state = made_up_state(recipe, COUNTED_IMAGES, classes)
    state.teacher_outputs = _KnownOutputs(state)
    images, batch = load_batch(state, torch.arange(COUNTED_IMAGES), 0)
    critic = state.critic.loss.critic if state.critic else None
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        state.distiller(images, state.teacher_outputs.of(images, batch) if state.teacher else None, batch, critic)
    teacher = forward_flops(state.teacher.network, recipe.data.image_shape) if state.teacher else 0
    return ImageCost((1 + BACKWARD_OVER_FORWARD) * counted.get_total_flops() / COUNTED_IMAGES, float(teacher))


@lru_cache(maxsize=16)
def image_seconds(recipe: Recipe, classes: int) -> ImageCost:
    """Return the seconds of an image in a step with known teacher outputs, and in the teacher's forward pass."""
    images = max(2, min(recipe.batch_size, int(TIMED_FLOPS / sum(image_flops(recipe, classes)))))
    state = made_up_state(recipe, images, classes)
    known = _KnownOutputs(state)
    if state.teacher:
        state.teacher_outputs = known
    state.distiller.train()
    state.step = state.critic.turns.critic_steps if state.critic else 0  # the student's turn, as in `image_flops`
    started = 0.0
    for step in range(TIMED_STEPS + 1):
        if step == 1:  # the first step allocates memory
            started = time.perf_counter()
        train_step(state, torch.arange(images), state.step)
    return ImageCost((time.perf_counter() - started) / TIMED_STEPS / images, known.forward_s / images)


class _KnownOutputs:
    """Teacher outputs of the one batch of a state, computed before its first step in `forward_s` seconds."""

    requested = computed = checked = 0
    off_reason: str | None = None

    def __init__(self, state: TrainState) -> None:
        self.seconds = self.forward_seconds = self.forward_s = 0.0
        if state.teacher is None:
            return
        pixels, _ = load_batch(state, torch.arange(len(state.data.train)), 0)
        for _ in range(2):  # the first forward pass allocates memory
            started = time.perf_counter()
            with torch.no_grad():
                logits, features = state.teacher.network.outputs(pixels, state.teacher.stages)
            self.forward_s = time.perf_counter() - started
        self.outputs = Outputs(logits, features)

    def begin(self, epoch: int) -> None:
        """Do nothing."""

    def of(self, images: torch.Tensor, batch: Batch) -> Outputs:
        return self.outputs

    def val_logits(self) -> torch.Tensor:
        return self.outputs.logits

    def close(self) -> None:
        """Do nothing."""


def made_up_state(recipe: Recipe, images: int, classes: int) -> TrainState:
    """Return the state of a training of random images, with networks that have random weights."""
    device, shape = torch.device("cpu"), recipe.data.image_shape
    teacher = None
    if recipe.teacher is not None:
        network = build(recipe.teacher, shape, classes, 0, pretrained=False, place="recipe.teacher")
        teacher = Teacher(network, device, recipe.method.needed_stages)
    return assemble(recipe, _made_up_data(images, shape, classes), teacher, device, pretrained=False)


def _made_up_data(images: int, image_shape: ImageShape, classes: int) -> Dataset:
    pixels = torch.randint(0, 256, (images, *image_shape), dtype=torch.uint8)
    split = Split(TensorImages(pixels), torch.arange(images) % classes)
    return Dataset("made up", tuple(str(k) for k in range(classes)), image_shape, split, split, split)
