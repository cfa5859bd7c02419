"""The text of `--plan`: what a sweep will do and what it costs at most. Needs no data and no Ray."""

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from kdtrain.config import space
from kdtrain.config.study_settings import Resources
from kdtrain.config.sweep import Sweep
from kdtrain.data.notes import data_notes
from kdtrain.data.registry import AnyData, data_folder, load
from kdtrain.errors import UserError
from kdtrain.storage.folder import user_path
from kdtrain.study.capacity import (
    Nodes,
    concurrency,
    device_of_trials,
    gpu_name,
    machine_resources,
    names_of_gpus,
    placement,
)
from kdtrain.study.cost import race_bounds, sharing, stage_costs, trainings
from kdtrain.study.description import network_sizes
from kdtrain.study.search_notes import search_notes
from kdtrain.study.smoke import preflight_points
from kdtrain.study.step_cost import TIMING_BUDGET_S


def plan(sweep: Sweep, data: str | None, cluster: tuple[Nodes, Nodes] | None = None) -> str:
    """Return the plan of a sweep as text; the cost is timed in this process, with as many threads as it has.

    `cluster`: the nodes that a cluster has, and those that it may have; None for this machine.

    Raises:
        UserError: Not even one trial fits onto the machine or the cluster.
    """
    first = sweep.recipe_for(space.probe_points(sweep.tree)[0], sweep.study.seed)
    images, classes, notes = _sizes(first.data, data)
    environment = Environment(
        loader=PackageLoader("kdtrain.study"), trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    environment.filters |= {"table": _table, "duration": duration, "flops": flops_text}
    budget = sweep.study.budget
    is_open = budget is not None and budget.epochs is None and sweep.study.trials is None
    nodes = cluster or ([machine_resources(sweep.resources)],) * 2
    shared = sharing(sweep, images, classes) if sweep.resources.teacher_cache != "none" else None
    return environment.get_template("plan.txt.j2").render(
        sweep=sweep,
        counts=trainings(sweep),
        race=race_bounds(sweep),
        combinations=len(preflight_points(sweep)),
        baseline_parameters=[parameter.name for parameter in sweep.baseline().parameters],
        networks=network_sizes(sweep, classes),
        sharing=shared,
        costs=None
        if images is None or is_open
        else stage_costs(sweep, images, classes, lambda config: _sizes(config, data)[0] or images),
        is_open=is_open,
        budget_s=TIMING_BUDGET_S,
        cluster=cluster,
        device=_device(sweep.resources, nodes[1], cluster is not None),
        notes=[*notes, *search_notes(sweep)],
        concurrency=None if images is None else concurrency(sweep.resources, *nodes),
    )


def duration(seconds: float) -> str:
    """Return a time in the unit that suits it: `40 s`, `12.5 min`, `7.3 h`, `1,234.5 days`."""
    for unit, length_s in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length_s:
            return f"{seconds / length_s:,.1f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"


def flops_text(flops: float) -> str:
    """Return a number of FLOPs: `12.34 TFLOP`, `2,694.9 PFLOP`."""
    return f"{flops / 1e15:,.1f} PFLOP" if flops >= 1e15 else f"{flops / 1e12:,.2f} TFLOP"


def _device(resources: Resources, nodes: Nodes, on_cluster: bool) -> str:
    """Return on what trials run, and how many share a GPU."""
    gpu = ", ".join(names_of_gpus(nodes)) or "GPU" if on_cluster else gpu_name()
    device = device_of_trials(resources, nodes, gpu)
    place = placement(resources, nodes)
    if place.to_be_measured:
        return f"{device}, trials per GPU: auto, decided after the preflight checks have measured a trial's memory"
    return device if place.trials_per_gpu is None else f"{device}, trials per GPU: {place.trials_per_gpu}"


def _table(rows: list[list[Any]]) -> str:
    """Return rows, the first of them the heads, as lines with columns of equal width."""
    texts = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in texts]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _sizes(config: AnyData, data: str | None) -> tuple[int | None, int, list[str]]:
    """Return the number of training images (None if the images that tell it are absent), that of classes, and notes.

    The files of a user's own folder are listed, not read.
    """
    images, classes = config.training_images, config.class_count
    if classes is not None and images is not None:
        return images, classes, []
    root = data_folder(data)
    folder = root / user_path(getattr(config, "folder", "."), "recipe.data.folder")
    try:
        dataset = load(config, root)
    except UserError as error:
        if classes is None and folder.is_dir():
            raise
        return None, classes or 2, [] if classes is None else list(error.problems)
    return len(dataset.train), len(dataset.classes), data_notes(dataset, contents=False)
