"""What a study is, in files: study.json for the report and for whoever opens the folder again, best.yaml to repeat."""

from pathlib import Path

from kdtrain.config import space
from kdtrain.config.recipe import Recipe
from kdtrain.config.sweep import Sweep
from kdtrain.config.yaml_reader import dump_yaml
from kdtrain.data.registry import load
from kdtrain.models.build import build, forward_flops, parameter_count
from kdtrain.models.config import Network
from kdtrain.storage.folder import Row


def plain_yaml(recipe: Recipe, name: str) -> str:
    """A recipe as a file for `python -m kdtrain`."""
    head = f"# The winner of the sweep {name}, with the first of its confirming seeds.\n"
    head += f"# Repeat: python -m kdtrain results/{name}/best.yaml --results repeat\n"
    return head + dump_yaml(recipe.model_dump(mode="json", exclude_unset=True))


def describe(sweep: Sweep, data_root: Path) -> Row:
    """study.json: what the study is, for the report and for whoever opens the folder again."""
    data = load(sweep.recipe_for(space.probe_points(sweep.tree)[0], 0).data, data_root)
    return {
        "name": sweep.name,
        "file": sweep.located.file,
        "overrides": list(sweep.overrides),
        "recipe": sweep.tree,
        "study": sweep.study.model_dump(mode="json"),
        "resources": sweep.resources.model_dump(mode="json"),
        "report": sweep.report.model_dump(mode="json"),
        "parameters": [parameter.as_json() for parameter in sweep.parameters],
        "models": networks(sweep, data.image_shape, len(data.classes)),
    }


def networks(sweep: Sweep, image_shape: tuple[int, int, int], classes: int) -> dict[str, Row]:
    """Parameters and FLOPs of one image's forward pass, of every network that the space can reach."""
    recipes = [sweep.recipe_for(v, 0) for v in space.combinations(sweep.tree, ("teacher", "student"))]
    students: list[Network] = [recipe.student for recipe in recipes]
    teachers: list[Network] = [recipe.teacher for recipe in recipes if recipe.teacher]
    found = {}
    for network in {network.model: network for network in [*teachers, *students]}.values():
        built = build(network, image_shape, classes, 0, pretrained=False)
        flops = forward_flops(built, image_shape)
        found[network.model] = {"parameters": parameter_count(built), "flops_per_image": flops}
    return found
