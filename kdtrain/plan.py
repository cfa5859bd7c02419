"""--plan: what a sweep will do and cost, said before anything is started. Needs no data and no Ray."""

import time
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from kdtrain import environment
from kdtrain.config import Sweep, space
from kdtrain.config.recipe import Recipe, teacher_recipe
from kdtrain.config.training import Constant, Sgd
from kdtrain.data import AnyData, Dataset, Split, data_folder, load
from kdtrain.data.base import TensorImages
from kdtrain.describe import networks
from kdtrain.loop import load_batch, train_step
from kdtrain.models import ImageShape, build, forward_flops
from kdtrain.resources import concurrent_trials, machine_resources
from kdtrain.run import Run
from kdtrain.search import Search
from kdtrain.study import PARTS, TEACHER_PARTS
from kdtrain.teacher import Teacher

TIMED_STEPS = 5
TIMED_FLOPS = 1e11  # at most so many in a timed step: a large network is timed on fewer images than a batch
COUNTED_IMAGES = 2
PLAIN_SGD = Sgd(name="sgd", lr=0.1, momentum=0.0)
BACKWARD_OVER_FORWARD = 2
"""A backward pass computes two products for each one of the forward pass: by the inputs and by the weights."""


def plan(sweep: Sweep, data: str | None, address: str | None) -> str:
    """The plan as text: stages, search space, networks and an upper bound of the cost."""
    first = sweep.recipe_for(space.probe_points(sweep.tree)[0], sweep.study.seed)
    images, classes = _sizes(first.data, data)
    parts = [
        f"{sweep.name}: {sweep.located.file}",
        _table(["stage", "trainings", "what"], _stages(sweep)),
        _table(["parameter", "space", "only where"], _space(sweep)),
        _table(["network", "parameters", "MFLOP/image (forward)"], _networks(sweep, first, classes)),
        _cost(sweep, images, classes, address),
    ]
    return "\n\n".join(part for part in parts if part)


def trainings(sweep: Sweep) -> dict[str, int]:
    """How many trainings each stage has at most."""
    reached = space.combinations(sweep.tree, TEACHER_PARTS)
    teachers = {teacher_recipe(sweep.recipe_for(values, 0)) for values in reached}
    confirm = sweep.study.confirm
    candidates = confirm.best + (len(sweep.published) if confirm.published else 0)
    return {
        "teacher": len(teachers - {None}),
        "baselines": Search("baselines", sweep.baseline()).trials,
        "search": Search("search", sweep).trials,
        "confirm": (candidates + _baselines_confirmed(sweep)) * confirm.seeds,
    }


def _baselines_confirmed(sweep: Sweep) -> int:
    """At most one for each student that a candidate can have."""
    students = {sweep.recipe_for(values, 0).student for values in space.combinations(sweep.tree, ("student",))}
    return len(students)


def _stages(sweep: Sweep) -> list[list[str]]:
    study, counts = sweep.study, trainings(sweep)
    smoke = len(space.combinations(sweep.tree, PARTS))
    shared = ", ".join(parameter.name for parameter in sweep.baseline().parameters) or "nothing: one recipe"
    searched = f"{study.sampler.name}, pruner {study.pruner.name}"
    if sweep.published:
        searched += f", the {len(sweep.published)} published first and never pruned"
    confirm = study.confirm
    confirmed = f"{confirm.best} best, baselines" + (", published" if confirm.published and sweep.published else "")
    return [
        ["smoke", "-", f"one batch through each of {smoke} (method, teacher, student)"],
        ["teacher", str(counts["teacher"]), "unless the store has it"],
        ["baselines", str(counts["baselines"]), f"the student alone, searched over {shared}"],
        ["search", str(counts["search"]), searched],
        ["confirm", f"<= {counts['confirm']}", f"{confirmed}; {confirm.seeds} seeds each; test split read here, once"],
        ["pictures", "-", "what needs networks to be drawn"],
    ]


def _space(sweep: Sweep) -> list[list[str]]:
    rows = []
    for parameter in sweep.parameters:
        if parameter.kind == "choice":
            text = "choice of " + ", ".join(str(label) for label in parameter.labels)
        else:
            text = f"{parameter.kind} {parameter.low:g} to {parameter.high:g}"
        only = ", ".join(f"{name} = {label}" for name, label in parameter.conditions.items())
        rows.append([parameter.name, text, only or "always"])
    return rows


def _networks(sweep: Sweep, first: Recipe, classes: int) -> list[list[str]]:
    found = networks(sweep, first.data.image_shape, classes)
    return [
        [name, f"{about['parameters']:,}", f"{about['flops_per_image'] / 1e6:,.2f}"] for name, about in found.items()
    ]


def _cost(sweep: Sweep, images: int | None, classes: int, address: str | None) -> str:
    """An upper bound: every training as dear as the dearest that the space can reach, nothing pruned; evaluation and
    start-up left out and said to be."""
    counts, longest = trainings(sweep), _longest(sweep)
    if images is None:
        return "cost: unknown until the images are there (--data DIR): their number is the user's own"
    environment.prepare_process(sweep.resources.cpus_per_worker)
    distilled = _dearest(_reachable(sweep, (*PARTS, "r_drop")), classes)
    alone = _dearest(_reachable(sweep.baseline(), ("data", "student", "r_drop")), classes)
    taught_by = _dearest(filter(None, map(teacher_recipe, _reachable(sweep, TEACHER_PARTS))), classes)
    work = [
        ("teacher", taught_by, counts["teacher"], taught_by.epochs if taught_by else 0),
        ("baselines", alone, counts["baselines"], longest),
        ("search and confirm", distilled, counts["search"] + counts["confirm"], longest),
    ]
    at_once = None if address else concurrent_trials(sweep.resources, [machine_resources()])
    rows, total_s, total_flops = [], 0.0, 0.0
    for name, recipe, count, epochs in work:
        if recipe is None or count == 0:
            continue
        seconds, flops = _step_seconds(recipe, classes), _training_flops(recipe, classes)
        seen = count * epochs * images
        rows.append([name, f"{seen:,}", f"{seen * flops / 1e12:,.2f}", f"{seen * seconds / 60:,.1f}"])
        total_s, total_flops = total_s + seen * seconds, total_flops + seen * flops
    table = _table(["stage", "images", "TFLOP", "minutes of one trial slot"], rows)
    together = f", {total_s / 60 / at_once:,.1f} min with {at_once} trials at once on this machine" if at_once else ""
    text = (
        f"cost at most: {total_flops / 1e12:,.2f} TFLOP, {total_s / 60:,.1f} min of one slot{together}\n"
        "(every training as dear as the dearest of the space, its steps timed here just now on made-up images, "
        f"{TIMED_STEPS} each;\nnothing pruned; reading images, validation and start-up come on top)"
    )
    return f"{table}\n\n{text}"


def _longest(sweep: Sweep) -> int:
    return max(sweep.recipe_for(values, 0).epochs for values in space.probe_points(sweep.tree))


def _reachable(sweep: Sweep, parts: Sequence[str]) -> Iterator[Recipe]:
    """A recipe for each way to choose in these parts, all else first or lowest."""
    return (sweep.recipe_for(values, 0) for values in space.combinations(sweep.tree, parts))


def _dearest(recipes: Iterable[Recipe], classes: int) -> Recipe | None:
    """The recipe whose images cost most; freezing, which saves part of a backward pass, is left out of account."""
    return max(recipes, key=lambda recipe: _training_flops(recipe, classes), default=None)


def _training_flops(recipe: Recipe, classes: int) -> float:
    """FLOPs of one image in training: student and criterion forward and backward (both passes of R-Drop), teacher
    forward. In the student's turn, which costs more than a critic's."""
    network = {"weights": None, "freeze": "none", "allow_random_frozen": False, "batch_norm_statistics": "update"}
    same = {"optimizer": PLAIN_SGD, "lr_schedule": Constant(name="constant"), "batch_size": COUNTED_IMAGES}
    plain = recipe.model_copy(update={**same, "student": recipe.student.model_copy(update=network)})
    return _counted_flops(plain, classes)


@lru_cache(maxsize=256)
def _counted_flops(recipe: Recipe, classes: int) -> float:
    run = _made_up_run(recipe, COUNTED_IMAGES, classes)
    images, batch = load_batch(run, torch.arange(COUNTED_IMAGES), 0)
    with torch.no_grad():
        teacher = run.teacher(images) if run.teacher else None
        critic = run.adversary.loss.critic if run.adversary else None
        with FlopCounterMode(display=False) as counter:
            run.distiller(images, teacher, batch, critic)
    by_teacher = forward_flops(run.teacher.network, recipe.data.image_shape) if run.teacher else 0
    return float((1 + BACKWARD_OVER_FORWARD) * counter.get_total_flops() / COUNTED_IMAGES + by_teacher)


def _step_seconds(recipe: Recipe, classes: int) -> float:
    """Seconds of one image in a training step."""
    images = max(2, min(recipe.batch_size, int(TIMED_FLOPS / _training_flops(recipe, classes))))
    run = _made_up_run(recipe, images, classes)
    run.distiller.train()
    # the student's turn, which costs more than a critic's
    run.step = run.adversary.turns.critic_steps if run.adversary else 0
    started = 0.0
    for step in range(TIMED_STEPS + 1):
        if step == 1:  # the first step allocates
            started = time.perf_counter()
        train_step(run, torch.arange(images), run.step)
    return (time.perf_counter() - started) / TIMED_STEPS / images


def _made_up_run(recipe: Recipe, images: int, classes: int) -> Run:
    device, shape = torch.device("cpu"), recipe.data.image_shape
    teacher = None
    if recipe.teacher is not None:
        network = build(recipe.teacher, shape, classes, 0, pretrained=False, place="recipe.teacher")
        teacher = Teacher(network, device, recipe.method.needed_stages)
    return Run(recipe, _made_up(images, shape, classes), teacher, device, pretrained=False)


def _made_up(images: int, image_shape: ImageShape, classes: int) -> Dataset:
    pixels = torch.randint(0, 256, (images, *image_shape), dtype=torch.uint8)
    split = Split(TensorImages(pixels), torch.arange(images) % classes)
    return Dataset("made up", tuple(str(k) for k in range(classes)), image_shape, split, split, split, "")


def _sizes(config: AnyData, data: str | None) -> tuple[int | None, int]:
    """(training images or None, classes): known beforehand, or read from a user's own folder where it is there."""
    if config.class_count is not None and config.train_images is not None:
        limit = (config.limit_per_class or config.train_images) * config.class_count
        return min(config.train_images, limit), config.class_count
    root = data_folder(data)
    if not (root / Path(getattr(config, "folder", "."))).is_dir():
        return None, 2
    dataset = load(config, root)
    return len(dataset.train), len(dataset.classes)


def _table(heads: list[str], rows: list[list[str]]) -> str:
    if not rows:
        return ""
    widths = [max(len(row[i]) for row in [heads, *rows]) for i in range(len(heads))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    head = "  ".join(cell.ljust(width) for cell, width in zip(heads, widths, strict=True)).rstrip()
    return "\n".join([head, "-" * len(head), *lines])
