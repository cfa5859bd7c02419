"""--plan: what a sweep will do and cost, said before anything is started. Needs no data and no Ray."""

from pathlib import Path

from kdtrain.config import space
from kdtrain.config.recipe import Recipe
from kdtrain.config.sweep import Sweep
from kdtrain.data.registry import AnyData, data_folder, load
from kdtrain.study.capacity import Nodes
from kdtrain.study.cost import cost, sharing, table, trainings
from kdtrain.study.description import networks
from kdtrain.study.study import PARTS


def plan(sweep: Sweep, data: str | None, cluster: tuple[Nodes, Nodes] | None = None) -> str:
    """The plan as text: stages, search space, networks and an upper bound of the cost.

    cluster: the nodes that are there and those that there may be; None: this machine.
    """
    first = sweep.recipe_for(space.probe_points(sweep.tree)[0], sweep.study.seed)
    images, classes = _sizes(first.data, data)
    parts = [
        f"{sweep.name}: {sweep.located.file}",
        table(["stage", "trainings", "what"], _stages(sweep)),
        table(["parameter", "space", "only where"], _space(sweep)),
        table(["network", "parameters", "MFLOP/image (forward)"], _networks(sweep, first, classes)),
        sharing(sweep, images, classes),
        cost(sweep, images, classes, cluster),
    ]
    return "\n\n".join(part for part in parts if part)


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
