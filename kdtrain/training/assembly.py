"""The one place where a recipe's parts are built and put together as a TrainState."""

from collections.abc import Callable, Sequence
from functools import partial

import torch

from kdtrain.config.needed_trainings import recipes_by_teacher
from kdtrain.config.recipe import Recipe, label_problem
from kdtrain.config.teacher import BatchNorm
from kdtrain.config.training import Adam, Constant, RDrop
from kdtrain.data.base import Dataset
from kdtrain.data.sampling import class_weights
from kdtrain.errors import UserError
from kdtrain.methods.base import MethodConfig, MethodContext
from kdtrain.models.build import build
from kdtrain.models.classifier import Classifier
from kdtrain.models.freezing import has_randomness
from kdtrain.models.sync_batch_norm import convert_sync_batchnorm, trains_batch_norm
from kdtrain.models.weights import errors_at
from kdtrain.runtime import distributed
from kdtrain.runtime.rng import seeded, stream
from kdtrain.teacher.ensemble import EnsembleOutputs, combined_logits
from kdtrain.teacher.network import Teacher
from kdtrain.teacher.outputs import LiveTeacher, TeacherOutputs, TeacherUse
from kdtrain.training.distiller import Distiller
from kdtrain.training.ema import ModelEma
from kdtrain.training.learner import Learner
from kdtrain.training.loader import BatchLoader
from kdtrain.training.precision import autocast
from kdtrain.training.state import CriticState, TrainState


def assemble(
    recipe: Recipe,
    data: Dataset,
    teachers: Sequence[Teacher],
    device: torch.device,
    *,
    pretrained: bool = True,
    loaders: int = 0,
    share_outputs: Callable[[LiveTeacher], TeacherOutputs] = lambda live: live,
) -> TrainState:
    """Build a training that has not begun: student, method, optimizers, loader.

    Each builder gets the part of the recipe that it needs. `pretrained` is False if only time or memory is measured;
    `loaders` is the number of processes that make the training's views, 0 for this process; `share_outputs` puts a
    teacher's outputs behind a cache.

    Raises:
        UserError: The parts do not fit together, e.g. the method needs maps of one size.
    """
    require_labels(recipe, data)
    student = build(
        recipe.student, data.image_shape, len(data.classes), stream(recipe.seed, "init"), pretrained=pretrained
    )
    context = _method_context(recipe, data, student, teachers)
    require_statistics(len(data.train), recipe.batch_size, recipe.batch_norm, student, device, "recipe.batch_size")
    distiller = _distiller(recipe.method, recipe.r_drop, student, context, device).to(device)
    outputs = [
        share_outputs(
            LiveTeacher(teacher, TeacherUse.of(each), data, device, partial(autocast, recipe.precision, device))
        )
        for teacher, each in zip(teachers, recipes_by_teacher(recipe), strict=True)
    ]
    steps_per_epoch = -(-len(data.train) // recipe.batch_size)
    learner = Learner(
        distiller, recipe.optimizer, recipe.lr_schedule, recipe.clipping, recipe.epochs, steps_per_epoch,
        torch.amp.GradScaler(device.type) if recipe.precision == "fp16" else None,
    )  # fmt: skip
    return TrainState(
        recipe=recipe,
        data=data,
        device=device,
        teachers=tuple(teachers),
        distiller=distiller,
        wrapped=_in_group(distiller, device, recipe.batch_norm),
        learner=learner,
        loader=BatchLoader(data.train, device, recipe.drawing, recipe.mixup, loaders),
        ema=ModelEma(student, recipe.ema) if recipe.ema else None,
        critic=_critic(recipe, context, device, steps_per_epoch),
        teacher_outputs=_as_one(recipe, outputs),
        class_weights=context.class_weights,
    )


def require_labels(recipe: Recipe, data: Dataset) -> None:
    """Raise UserError if the data have no label to learn from, or a key has no meaning with the labels that they have.

    The config says so first where it knows which labels are hidden.
    """
    total, labelled = len(data.train), len(data.train.labelled)
    if not labelled and (recipe.drawing.labelled_only or recipe.labelled_share is not None):
        raise UserError(f"recipe.data: none of the {total} training images of {data.name} has a label to train with")
    if problem := label_problem(recipe, labelled < total):
        key, _, rule = problem.partition(" ")
        raise UserError(f"recipe.{key}: {rule} ({data.name}: {labelled} of {total} images have labels)")


def _as_one(recipe: Recipe, outputs: Sequence[TeacherOutputs]) -> TeacherOutputs | None:
    """Return the outputs that the recipe's method gets, from those of each teacher."""
    if recipe.ensemble is not None:
        return EnsembleOutputs(outputs, partial(combined_logits, recipe))
    return next(iter(outputs), None)


def require_statistics(
    total: int, batch_size: int, batch_norm: BatchNorm, student: Classifier, device: torch.device, place: str
) -> None:
    """Raise UserError if a batch leaves a network's batch normalisation one image, which has no statistics."""
    workers = distributed.size()
    last = (total - 1) % batch_size + 1
    per_worker = batch_norm == "per_worker"
    shared = f", shared by {workers} workers" if workers > 1 else ""
    left = f"{place}: {batch_size} leaves {last} of {total} images for the last batch{shared}"
    norm = student.norm_over_images() if last < (2 * workers if per_worker else 2) else None
    if norm is not None:
        raise UserError(
            f"{left}, but the batch normalisation {norm} of {student.name} needs at least 2 images; choose another"
        )
    if not per_worker and last < workers and device.type != "cpu" and trains_batch_norm(student.train()):
        raise UserError(f"{left}, but on a GPU batch normalisation needs an image on each; choose another")


def _method_context(recipe: Recipe, data: Dataset, student: Classifier, teachers: Sequence[Teacher]) -> MethodContext:
    """Measure the shapes of the stages that the method reads, by a dry forward of both networks."""
    stages = recipe.method.needed_stages
    with errors_at("recipe.method"):
        student_shapes = student.stage_shapes(stages)
        teacher_shapes = teachers[0].network.stage_shapes(stages) if teachers else {}  # an ensemble has no stages
    return MethodContext(
        classes=len(data.classes),
        batch_size=recipe.batch_size,
        label_smoothing=recipe.label_smoothing,
        class_weights=class_weights(recipe.class_weights, data.train.labels, len(data.classes)),
        seed=recipe.seed,
        student_shapes=student_shapes,
        teacher_shapes=teacher_shapes,
    )


def _distiller(
    method: MethodConfig, r_drop: RDrop | None, student: Classifier, context: MethodContext, device: torch.device
) -> Distiller:
    with seeded(stream(context.seed, "criterion")):  # for the initial weights of a projector or generator
        criterion = method.criterion(context)
    if device.type == "cuda":  # on a CPU a generator's convolutions are faster with contiguous weights
        criterion = criterion.to(memory_format=student.layout)
    if r_drop is None:
        return Distiller(student, criterion, method.needed_stages)
    if not has_randomness(student):
        raise UserError(
            f"recipe.r_drop: compares two passes with dropout, but {student.name} has none; write student.dropout"
        )
    return Distiller(student, criterion, method.needed_stages, r_drop.weight, summed=r_drop.convention == "published")


def _critic(recipe: Recipe, context: MethodContext, device: torch.device, steps_per_epoch: int) -> CriticState | None:
    player = recipe.method.critic(context)
    if player is None:
        return None
    loss = player.loss.to(device)
    adam, constant = Adam(name="adam", lr=player.lr), Constant(name="constant")
    return CriticState(
        loss=loss,
        turns=player.turns,
        wrapped=_in_group(loss, device, recipe.batch_norm),
        learner=Learner(loss, adam, constant, None, recipe.epochs, steps_per_epoch),
    )


def _in_group(module: torch.nn.Module, device: torch.device, batch_norm: BatchNorm) -> torch.nn.Module:
    """Return the module itself, or with several workers a DDP wrapper that averages gradients over them."""
    if distributed.size() == 1:
        return module
    if batch_norm == "global":
        module = convert_sync_batchnorm(module, device)
    # DDP copies rank 0's buffers before every forward: statistics per worker differ, global ones are equal anyway
    return torch.nn.parallel.DistributedDataParallel(module)
