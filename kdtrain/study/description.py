"""The files that describe a study: study.json, which the report reads, and best.yaml, which repeats its winner."""

from pathlib import Path
from typing import cast

from kdtrain.config import space
from kdtrain.config.recipe import Recipe
from kdtrain.config.sweep import Sweep
from kdtrain.config.yaml_reader import dump_yaml
from kdtrain.data.registry import load
from kdtrain.models.build import network_size
from kdtrain.models.config import Network
from kdtrain.trials.records import NetworkSize, ParameterRecord, StudyRecord


def recipe_yaml(recipe: Recipe, sweep_name: str) -> str:
    """Return the winner's recipe as the text of best.yaml."""
    head = f"# The winner of the sweep {sweep_name}, with the first of its confirming seeds.\n"
    head += '# "To repeat it" in report.md has the command that trains it again.\n'
    return head + dump_yaml(recipe.model_dump(mode="json", exclude_unset=True))


def describe(sweep: Sweep, data_root: Path, earlier: StudyRecord | None = None) -> StudyRecord:
    """Return the content of study.json without its schema number.

    Measuring the networks takes seconds. Their sizes are taken from `earlier`, a study.json, if its recipe is the same.
    """
    models = earlier.get("models") if earlier is not None and earlier["recipe"] == sweep.tree else None
    if models is None:
        data = load(sweep.recipe_for(space.probe_points(sweep.tree)[0], 0).data, data_root)
        models = network_sizes(sweep, data.image_shape, len(data.classes))
    return {
        "name": sweep.name,
        "file": sweep.located.file,
        "overrides": list(sweep.overrides),
        "recipe": sweep.tree,
        "study": sweep.study.model_dump(mode="json"),
        "resources": sweep.resources.model_dump(mode="json"),
        "report": sweep.report.model_dump(mode="json"),
        "parameters": cast(list[ParameterRecord], [parameter.as_json() for parameter in sweep.parameters]),
        "models": models,
    }


def network_sizes(sweep: Sweep, image_shape: tuple[int, int, int], classes: int) -> dict[str, NetworkSize]:
    """Return parameters and forward FLOPs of each network of the space, by model name."""
    recipes = [sweep.recipe_for(values, 0) for values in space.combinations(sweep.tree, ("teacher", "student"))]
    students: list[Network] = [recipe.student for recipe in recipes]
    teachers: list[Network] = [recipe.teacher for recipe in recipes if recipe.teacher]
    sizes: dict[str, NetworkSize] = {}
    for network in {network.model: network for network in [*teachers, *students]}.values():
        parameters, flops = network_size(network, image_shape, classes)
        sizes[network.model] = {"parameters": parameters, "flops_per_image": flops}
    return sizes
