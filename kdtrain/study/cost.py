"""What a sweep costs at most, and what its trials share: for --plan. Needs no data and no Ray."""

import time
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache

import torch

from kdtrain.config import space
from kdtrain.config.recipe import Recipe, teacher_recipe
from kdtrain.config.sweep import Sweep
from kdtrain.config.training import Constant, Sgd
from kdtrain.data.base import Dataset, Split, TensorImages
from kdtrain.methods.base import Batch, Outputs
from kdtrain.models.build import build, forward_flops
from kdtrain.models.flops import Flops
from kdtrain.models.source import ImageShape
from kdtrain.runtime import process
from kdtrain.study.capacity import Nodes, concurrency, concurrent_trials, machine_resources
from kdtrain.study.search import Search
from kdtrain.study.study import PARTS, TEACHER_PARTS
from kdtrain.teacher.cache_policy import bytes_per_image, reason_not_cached
from kdtrain.teacher.network import Teacher
from kdtrain.teacher.outputs import LiveTeacher
from kdtrain.training.assembly import assemble
from kdtrain.training.loop import load_batch, train_step
from kdtrain.training.state import TrainState

TIMED_STEPS = 5
TIMED_FLOPS = 1e11  # at most so many in a timed step: a large network is timed on fewer images than a batch
COUNTED_IMAGES = 2
PLAIN_SGD = Sgd(name="sgd", lr=0.1, momentum=0.0)
BACKWARD_OVER_FORWARD = 2
"""A backward pass computes two products for each one of the forward pass: by the inputs and by the weights."""


def cost(sweep: Sweep, images: int | None, classes: int, cluster: tuple[Nodes, Nodes] | None) -> str:
    """An upper bound: every training as dear as the dearest that the space can reach, nothing pruned; evaluation and
    start-up left out and said to be."""
    counts, longest = trainings(sweep), _longest(sweep)
    if images is None:
        return "cost: unknown until the images are there (--data DIR): their number is the user's own"
    process.prepare_process(sweep.resources.cpus_per_worker)
    reached = list(_reachable(sweep, (*PARTS, "r_drop")))
    distilled = _dearest(reached, classes)
    alone = _dearest(_reachable(sweep.baseline(), ("data", "student", "r_drop")), classes)
    taught_by = _dearest(filter(None, map(teacher_recipe, reached)), classes)
    teacher = max(reached, key=lambda recipe: _flops(recipe, classes)[1])
    work = [
        ("teacher", taught_by, counts["teacher"] * (taught_by.epochs if taught_by else 0) * images, 0),
        ("baselines", alone, counts["baselines"] * longest * images, 0),
        ("search and confirm", distilled, (counts["search"] + counts["confirm"]) * longest * images, 0),
        ("teacher's answers", teacher, teacher_images(sweep, images, classes), 1),
    ]
    if cluster is None:
        at_once, where = concurrent_trials(sweep.resources, [machine_resources()]), ""
    else:
        at_once, where = concurrency(sweep.resources, *cluster)
        where = f"\ntrials: {where}"
    rows, total_s, total_flops = [], 0.0, 0.0
    for name, recipe, seen, part in work:
        if recipe is None or seen == 0:
            continue
        seconds, flops = _seconds(recipe, classes)[part], _flops(recipe, classes)[part]
        rows.append([name, f"{seen:,}", f"{seen * flops / 1e12:,.2f}", f"{seen * seconds / 60:,.1f}"])
        total_s, total_flops = total_s + seen * seconds, total_flops + seen * flops
    stages = table(["stage", "images", "TFLOP", "minutes of one trial slot"], rows)
    on = "on this machine" if cluster is None else "if its nodes are as fast as this one"
    together = f", {total_s / 60 / at_once:,.1f} min with {at_once} trials at once {on}"
    return (
        f"{stages}\n\ncost at most: {total_flops / 1e12:,.2f} TFLOP, {total_s / 60:,.1f} min of one slot{together}\n"
        "(every training as dear as the dearest of the space, its steps timed here just now on made-up images, "
        f"{TIMED_STEPS} each;\nnothing pruned; reading images, validation and start-up come on top){where}"
    )


def sharing(sweep: Sweep, images: int | None, classes: int) -> str:
    """Which trials read what a teacher said once, what is kept of it, and which values have groups of their own."""
    if sweep.resources.teacher_cache == "none":
        return "teachers are asked in every trial (resources.teacher_cache: none)"
    kept, live = _kept_and_live(sweep, images, classes)
    lines = [f"asked in every trial: {reason}" for reason in dict.fromkeys(live.values())]
    for recipe, size in kept.items():
        streams, views = _streams(sweep, recipe), _views(sweep, recipe)
        kept_bytes = size * (images or 0) * views * streams
        stored = "" if images is None else f", {kept_bytes / 1e9:,.2f} GB"
        if kept_bytes > sweep.resources.cache_bytes:
            budget = f"{sweep.resources.cache_bytes / 1e9:,.2f} GB of resources.cache_bytes"
            stored += f", more than the {budget}: shared only by trials that are at the same epoch"
        of_search = f"{streams} streams of views (the search's, one for each confirming seed), {views} epochs each"
        shown = f" and view, {of_search}" if streams > 1 else ", the same view in every epoch"
        lines.append(f"computed once for all trials: {size:,} bytes of an image{shown}{stored}")
    lines = list(dict.fromkeys(lines))
    splits = ["teacher", "data", *(name for name in ("mixup", "precision") if name in sweep.tree)]
    by_batch = any(reading.of_batch for recipe in kept for reading in recipe.method.readings)
    named = [p.name for p in sweep.parameters if p.path[0] in splits or (by_batch and p.path[0] == "batch_size")]
    if named:
        lines.append(f"values of {', '.join(named)} have answers of their own")
    return "what a teacher says is\n" + "\n".join(f"- {line}" for line in lines)


def teacher_images(sweep: Sweep, images: int, classes: int) -> int:
    """How many training images teachers are asked about at most: once for each view where their answers are kept, in
    every training where they are not."""
    counts, longest = trainings(sweep), _longest(sweep)
    in_every_training = (counts["search"] + counts["confirm"]) * longest * images
    kept, live = _kept_and_live(sweep, images, classes)
    if live or sweep.resources.teacher_cache == "none":
        return in_every_training
    groups = {_group(recipe): (recipe, size) for recipe, size in kept.items()}
    passes = [(_streams(sweep, recipe) * _views(sweep, recipe), size) for recipe, size in groups.values()]
    if images * sum(views * size for views, size in passes) > sweep.resources.cache_bytes:
        return in_every_training  # earlier views make room for later ones
    return min(images * sum(views for views, _ in passes), in_every_training)


def _group(recipe: Recipe) -> tuple[object, ...]:
    """Recipes of one group read the same answers."""
    batches = recipe.batch_size if any(each.of_batch for each in recipe.method.readings) else None
    return recipe.teacher, recipe.data, recipe.mixup, recipe.precision, batches


def _kept_and_live(sweep: Sweep, images: int | None, classes: int) -> tuple[dict[Recipe, int], dict[Recipe, str]]:
    """Of each way to choose: the bytes that are kept of an image, or why nothing is."""
    kept: dict[Recipe, int] = {}
    live: dict[Recipe, str] = {}
    for recipe in _reachable(sweep, (*PARTS, "mixup", "precision", "batch_size")):
        run = _made_up_run(recipe, COUNTED_IMAGES, classes)
        assert isinstance(run.teacher_outputs, LiveTeacher)
        reason = reason_not_cached(
            run.teacher_outputs, recipe.method.readings, images or 0, sweep.resources.cache_bytes
        )
        if reason:
            live[recipe] = reason
        else:
            kept[recipe] = bytes_per_image(run.teacher_outputs, recipe.method.readings)
    return kept, live


def _streams(sweep: Sweep, recipe: Recipe) -> int:
    """Seeds whose views differ: the search's, and each confirming one's."""
    drawn = recipe.data.drawn or recipe.mixup is not None or any(each.of_batch for each in recipe.method.readings)
    return 1 + sweep.study.confirm.seeds if drawn else 1


def _views(sweep: Sweep, recipe: Recipe) -> int:
    return _longest(sweep) if _streams(sweep, recipe) > 1 else 1


def _longest(sweep: Sweep) -> int:
    return max(sweep.recipe_for(values, 0).epochs for values in space.probe_points(sweep.tree))


def _reachable(sweep: Sweep, parts: Sequence[str]) -> Iterator[Recipe]:
    """A recipe for each way to choose in these parts, all else first or lowest."""
    return (sweep.recipe_for(values, 0) for values in space.combinations(sweep.tree, parts))


def _dearest(recipes: Iterable[Recipe], classes: int) -> Recipe | None:
    """The recipe whose own images cost most; freezing, which saves part of a backward pass, is left out of account."""
    return max(recipes, key=lambda recipe: _flops(recipe, classes)[0], default=None)


def _flops(recipe: Recipe, classes: int) -> tuple[float, float]:
    """FLOPs of one image in training: student and criterion forward and backward (both passes of R-Drop), in the
    student's turn, which costs more than a critic's; and the teacher's forward pass."""
    network = {"weights": None, "freeze": "none", "allow_random_frozen": False, "batch_norm_statistics": "update"}
    same = {"optimizer": PLAIN_SGD, "lr_schedule": Constant(name="constant"), "batch_size": COUNTED_IMAGES}
    plain = recipe.model_copy(update={**same, "student": recipe.student.model_copy(update=network)})
    return _counted_flops(plain, classes)


@lru_cache(maxsize=256)
def _counted_flops(recipe: Recipe, classes: int) -> tuple[float, float]:
    run = _made_up_run(recipe, COUNTED_IMAGES, classes)
    run.teacher_outputs = _Ready(run)
    images, batch = load_batch(run, torch.arange(COUNTED_IMAGES), 0)
    critic = run.critic.loss.critic if run.critic else None
    with torch.no_grad(), Flops() as counted:
        run.distiller(images, run.teacher_outputs.of(images, batch) if run.teacher else None, batch, critic)
    by_teacher = forward_flops(run.teacher.network, recipe.data.image_shape) if run.teacher else 0
    return (1 + BACKWARD_OVER_FORWARD) * counted.total / COUNTED_IMAGES, float(by_teacher)


@lru_cache(maxsize=16)
def _seconds(recipe: Recipe, classes: int) -> tuple[float, float]:
    """Seconds of one image in a training step, its teacher's answer known, and in the teacher's forward pass."""
    images = max(2, min(recipe.batch_size, int(TIMED_FLOPS / sum(_flops(recipe, classes)))))
    run = _made_up_run(recipe, images, classes)
    ready = _Ready(run)
    if run.teacher:
        run.teacher_outputs = ready
    run.distiller.train()
    # the student's turn, which costs more than a critic's
    run.step = run.critic.turns.critic_steps if run.critic else 0
    started = 0.0
    for step in range(TIMED_STEPS + 1):
        if step == 1:  # the first step allocates
            started = time.perf_counter()
        train_step(run, torch.arange(images), run.step)
    return (time.perf_counter() - started) / TIMED_STEPS / images, ready.seconds / images


class _Ready:
    """A teacher's answers for the one batch of a run, known before its first step; seconds: what they took."""

    asked = computed = checked = 0
    off: str | None = None

    def __init__(self, run: TrainState) -> None:
        self.seconds = self.forward_seconds = 0.0
        if run.teacher is None:
            return
        pixels, _ = load_batch(run, torch.arange(len(run.data.train)), 0)
        for _ in range(2):  # the first forward allocates
            started = time.perf_counter()
            with torch.no_grad():
                logits, features = run.teacher.network.outputs(pixels, run.teacher.stages)
            self.seconds = time.perf_counter() - started
        self.outputs = Outputs(logits, features)

    def begin(self, epoch: int) -> None:
        """Nothing to prepare."""

    def of(self, images: torch.Tensor, batch: Batch) -> Outputs:
        return self.outputs

    def val_logits(self) -> torch.Tensor:
        return self.outputs.logits

    def close(self) -> None:
        """Nothing is held."""


def _made_up_run(recipe: Recipe, images: int, classes: int) -> TrainState:
    device, shape = torch.device("cpu"), recipe.data.image_shape
    teacher = None
    if recipe.teacher is not None:
        network = build(recipe.teacher, shape, classes, 0, pretrained=False, place="recipe.teacher")
        teacher = Teacher(network, device, recipe.method.needed_stages)
    return assemble(recipe, _made_up(images, shape, classes), teacher, device, pretrained=False)


def _made_up(images: int, image_shape: ImageShape, classes: int) -> Dataset:
    pixels = torch.randint(0, 256, (images, *image_shape), dtype=torch.uint8)
    split = Split(TensorImages(pixels), torch.arange(images) % classes)
    return Dataset("made up", tuple(str(k) for k in range(classes)), image_shape, split, split, split, "")


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


def table(heads: list[str], rows: list[list[str]]) -> str:
    if not rows:
        return ""
    widths = [max(len(row[i]) for row in [heads, *rows]) for i in range(len(heads))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    head = "  ".join(cell.ljust(width) for cell, width in zip(heads, widths, strict=True)).rstrip()
    return "\n".join([head, "-" * len(head), *lines])
