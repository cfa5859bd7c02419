"""FLOPs and seconds of an image in a training, from made-up images. Needs no data.

FLOPs are counted on the meta device, where nothing is computed. Seconds are measured within a budget of time; what does
not fit into it is scaled by FLOPs, and each timing says how it was found.
"""

import time
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from kdtrain.config.needed_trainings import recipes_by_teacher
from kdtrain.config.recipe import Recipe
from kdtrain.config.training import Constant, Sgd
from kdtrain.data.base import Dataset, Split, TensorImages
from kdtrain.methods.base import Batch, Outputs
from kdtrain.models.build import build, forward_flops, network_size
from kdtrain.models.source import ImageShape
from kdtrain.runtime.process import cpu_threads
from kdtrain.teacher.ensemble import combined_logits
from kdtrain.teacher.network import Teacher
from kdtrain.teacher.outputs import LiveTeacher, TeacherUse
from kdtrain.training.assembly import assemble
from kdtrain.training.loop import load_batch, train_step
from kdtrain.training.state import TrainState

TIMING_BUDGET_S = 10.0
"""Wall time for all measurements of a plan, shared by the recipes that are timed."""
TIMED_STEPS = 5
"""Most steps that are timed, after a first one, which allocates memory."""
COUNTED_IMAGES = 2
PLAIN_SGD = Sgd(name="sgd", lr=0.1, momentum=0.0)
BACKWARD_OVER_FORWARD = 2
"""For each product of the forward pass, the backward pass computes two: by the inputs and by the weights."""
BUILT_PARAMETERS_PER_S = 2e7
"""Parameters of a network that are drawn at random in a second, at least."""
CPU, META = torch.device("cpu"), torch.device("meta")


class ImageCost(NamedTuple):
    """The cost of an image: its step without the teachers, and the forward passes of all of them (0 without any)."""

    step: float
    teacher: float


@dataclass(frozen=True)
class ImageSeconds:
    """The seconds of an image, as `ImageCost`, and `how` they were found, for a table."""

    step: float
    teacher: float
    how: str


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
    try:
        return _counted_on(META, recipe, classes)
    except (RuntimeError, ValueError, TypeError):  # a network or a method that reads values (`.item()`)
        return _counted_on(CPU, recipe, classes)


def _counted_on(device: torch.device, recipe: Recipe, classes: int) -> ImageCost:
    state = made_up_state(recipe, COUNTED_IMAGES, classes, device)
    images, batch = load_batch(state, torch.arange(COUNTED_IMAGES), 0)
    critic = state.critic.loss.critic if state.critic else None
    with torch.no_grad():
        outputs = _outputs(state, images)
        with FlopCounterMode(display=False) as counted:
            state.distiller(images, outputs, batch, critic)
    teacher = sum(forward_flops(each.network, recipe.data.image_shape) for each in state.teachers)
    return ImageCost((1 + BACKWARD_OVER_FORWARD) * counted.get_total_flops() / COUNTED_IMAGES, float(teacher))


def image_seconds(
    recipes: Iterable[Recipe], classes: int, threads: int, budget_s: float = TIMING_BUDGET_S
) -> dict[Recipe, ImageSeconds]:
    """Return the seconds of an image for each recipe, measured with this number of CPU threads, the cheapest first.

    Steps are timed if two of them, with two images, fit into the recipe's share of the budget; else one forward pass,
    which counts three times; else seconds follow from FLOPs, at the speed of the recipe that was measured before, or,
    if none was, at a quarter of a convolution's.
    """
    found: dict[Recipe, ImageSeconds] = {}
    waiting = sorted(set(recipes), key=lambda recipe: sum(image_flops(recipe, classes)))
    with cpu_threads(threads):
        speed, scaled = _speed_of_convolutions() / 4, "scaled by FLOPs from a convolution"  # speed: FLOP/s
        while waiting:
            recipe, share_s = waiting[0], budget_s / len(waiting)
            began = time.perf_counter()
            step, teacher = image_flops(recipe, classes)
            timed = _timed(recipe, classes, share_s, speed)
            if timed is not None:
                speed, scaled = (step + teacher) / (timed.step + timed.teacher), "scaled by FLOPs"
            found[recipe] = timed or ImageSeconds(step / speed, teacher / speed, scaled)
            budget_s = max(budget_s - (time.perf_counter() - began), 0.0)
            waiting.pop(0)
    return found


def _timed(recipe: Recipe, classes: int, share_s: float, speed: float) -> ImageSeconds | None:
    """Return the measured seconds, or None if nothing fits into the share at this speed, in FLOP/s."""
    step, teacher = image_flops(recipe, classes)
    shape = recipe.data.image_shape
    networks = [(recipe.student, shape), *((teacher, teacher.image_shape(shape)) for teacher in recipe.teachers)]
    parameters = sum(network_size(network, own_shape, classes)[0] for network, own_shape in networks)
    share_s -= parameters / BUILT_PARAMETERS_PER_S
    fitting = int(share_s * speed / (2 * (step + teacher)))  # images of a first and of a second step
    if fitting >= COUNTED_IMAGES:
        return _timed_steps(recipe, classes, min(fitting, recipe.batch_size), share_s)
    if share_s * speed >= COUNTED_IMAGES * (step / (1 + BACKWARD_OVER_FORWARD) + teacher):
        return _timed_forward(recipe, classes)
    return None


def _timed_steps(recipe: Recipe, classes: int, images: int, share_s: float) -> ImageSeconds:
    state = made_up_state(recipe, max(images, COUNTED_IMAGES), classes)
    known = _KnownOutputs(state)
    if state.teachers:
        state.teacher_outputs = known
    state.distiller.train()
    state.step = state.critic.turns.critic_steps if state.critic else 0  # the student's turn, as in `image_flops`
    indices = torch.arange(len(state.data.train))
    train_step(state, indices, state.step)  # allocates memory
    began, began_cpu_s, steps = time.perf_counter(), _cpu_s(), 0
    while steps == 0 or (steps < TIMED_STEPS and time.perf_counter() - began < share_s / 2):
        train_step(state, indices, state.step)
        steps += 1
    step_s = (_cpu_s() - began_cpu_s) / steps / len(indices)
    return ImageSeconds(step_s, known.forward_s / len(indices), f"{steps} steps of {len(indices)} images")


def _timed_forward(recipe: Recipe, classes: int) -> ImageSeconds:
    state = made_up_state(recipe, COUNTED_IMAGES, classes)
    images, batch = load_batch(state, torch.arange(COUNTED_IMAGES), 0)
    critic = state.critic.loss.critic if state.critic else None
    with torch.no_grad():
        began_s = _cpu_s()
        outputs = _outputs(state, images)
        taught_s = _cpu_s()
        state.distiller(images, outputs, batch, critic)
        ended_s = _cpu_s()
    step_s = (1 + BACKWARD_OVER_FORWARD) * (ended_s - taught_s) / COUNTED_IMAGES
    return ImageSeconds(step_s, (taught_s - began_s) / COUNTED_IMAGES if outputs else 0.0, "a forward pass, times 3")


def _speed_of_convolutions() -> float:
    """Return the FLOP/s of a 3x3 convolution, the fastest of three runs."""
    images, weights = torch.rand(4, 64, 56, 56), torch.rand(64, 64, 3, 3)
    seconds = []
    for _ in range(3):
        began_s = _cpu_s()
        torch.nn.functional.conv2d(images, weights, padding=1)
        seconds.append(_cpu_s() - began_s)
    return 2 * images.numel() * weights[0].numel() / max(min(seconds), 1e-6)


def _cpu_s() -> float:
    """Return the CPU time of this process per thread: other processes of the machine do not count."""
    return time.process_time() / torch.get_num_threads()


def _outputs(state: TrainState, images: Tensor) -> Outputs | None:
    found = [Outputs(*teacher.network.outputs(images, teacher.stages)) for teacher in state.teachers]
    if state.recipe.ensemble is not None:
        return Outputs(combined_logits(state.recipe, [each.logits for each in found]))
    return next(iter(found), None)


class _KnownOutputs:
    """Teacher outputs of the one batch of a state, computed before its first step in `forward_s` seconds."""

    requested = computed = checked = 0
    off_reason: str | None = None

    def __init__(self, state: TrainState) -> None:
        self.seconds = self.forward_seconds = self.forward_s = 0.0
        if not state.teachers:
            return
        images, _ = load_batch(state, torch.arange(len(state.data.train)), 0)
        began_s = _cpu_s()
        with torch.no_grad():
            outputs = _outputs(state, images)
        assert outputs is not None
        self.outputs, self.forward_s = outputs, _cpu_s() - began_s

    def begin(self, epoch: int) -> None:
        """Do nothing."""

    def of(self, images: Tensor, batch: Batch) -> Outputs:
        return self.outputs

    def val_logits(self, *, counted: bool) -> Tensor:
        return self.outputs.logits

    def close(self) -> None:
        """Do nothing."""


def made_up_state(recipe: Recipe, images: int, classes: int, device: torch.device = CPU) -> TrainState:
    """Return the state of a training of random images, with networks that have random weights.

    On the meta device networks have shapes only. Raises a RuntimeError if a network cannot be built there.
    """
    recipe = recipe.model_copy(update={"labelled_share": None})  # made-up images all have labels
    data = _made_up_data(images, recipe.data.image_shape, classes)
    teachers = [_made_up_teacher(each, classes, device) for each in recipes_by_teacher(recipe)]
    with device:
        return assemble(recipe, data, teachers, device, pretrained=False)


def made_up_teacher(recipe: Recipe, classes: int) -> LiveTeacher:
    """Return the outputs of a recipe's one teacher with shapes only, or random weights if it is not built without."""
    data = _made_up_data(COUNTED_IMAGES, recipe.data.image_shape, classes)
    try:
        teacher = _made_up_teacher(recipe, classes, META)
    except RuntimeError:
        teacher = _made_up_teacher(recipe, classes, CPU)
    return LiveTeacher(teacher, TeacherUse.of(recipe), data, CPU, nullcontext)


def _made_up_teacher(recipe: Recipe, classes: int, device: torch.device) -> Teacher:
    (config,) = recipe.teachers
    shape = config.image_shape(recipe.data.image_shape)
    with device:
        network = build(config, shape, classes, 0, pretrained=False, place="recipe.teacher")
        return Teacher(network, device, recipe.method.needed_stages)


def _made_up_data(images: int, image_shape: ImageShape, classes: int) -> Dataset:
    pixels = torch.randint(0, 256, (images, *image_shape), dtype=torch.uint8)
    split = Split(TensorImages(pixels), torch.arange(images) % classes)
    return Dataset("made up", tuple(str(k) for k in range(classes)), image_shape, split, split, split)
