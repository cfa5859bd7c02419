"""The identity of a trial: the hash of everything that may change one bit of what a training learns."""

import hashlib
import json
from pathlib import Path
from typing import Any

from kdtrain.config.needed_trainings import recipes_by_teacher, teacher_places, teacher_recipe, teachers_above
from kdtrain.config.recipe import Recipe
from kdtrain.config.teacher import Teacher
from kdtrain.data.base import Dataset
from kdtrain.data.registry import load
from kdtrain.errors import UserError
from kdtrain.models.config import Network, WeightsFile
from kdtrain.models.weights import content_digest, weights_source
from kdtrain.runtime.source_code import code_digest

# 7: transparent pixels are composited and EXIF's orientation is applied; steps on a GPU use fused AdamW.
NUMERICS = 7
"""Raised when a change of the code alters results, so that old trials are not taken for new ones."""


def identity(recipe: Recipe, data_root: Path, place: str = "recipe.student") -> dict[str, Any]:
    """Return what `trial_id` hashes. `place` is where the user wrote the student, for error messages.

    These are the recipe with its balance as two weights, the content or name of the weights that its networks begin
    with, its teacher's whole recipe and code (or the content of its file), the data's fingerprint, the code of its
    method's module as this process runs it, and NUMERICS, which stands for all other code. An ensemble has each of its
    teachers like that, how they are combined, and each one's share of the weights, so that only their ratios count.

    Raises:
        UserError: The data set, a file of weights or the method's source file is absent.
    """
    data = _data_at(recipe, data_root, place)
    resolved = recipe.model_dump(mode="json", exclude={"teacher": True, "student": {"allow_random_frozen"}})
    resolved["student"]["weights"] = _starting_weights(recipe, place)
    if "balance" in resolved["method"]:
        resolved["method"]["balance"] = list(recipe.method.balance.weights)  # type: ignore[union-attr]
    places = teacher_places(recipe.teacher, place)
    teachers = [_teacher(each, data_root, at) for each, at in zip(recipes_by_teacher(recipe), places, strict=True)]
    if (ensemble := recipe.ensemble) is not None:
        resolved["teacher"] = {"of": teachers, "combine": ensemble.combine, "shares": list(ensemble.shares)}
    elif teachers:
        resolved["teacher"] = teachers[0]
    code = code_digest(type(recipe.method).__module__)
    return {"recipe": resolved, "data": data.fingerprint, "code": code, "numerics": NUMERICS}


def _data_at(recipe: Recipe, data_root: Path, place: str) -> Dataset:
    """Return a recipe's data; an error about a teacher's own data names where they are written."""
    try:
        return load(recipe.data, data_root)
    except UserError as error:
        if place == "recipe.student":
            raise
        raise UserError(*(text.replace("recipe.data", f"{place}.data") for text in error.problems)) from None


def trial_id(recipe: Recipe, data_root: Path, place: str = "recipe.student") -> str:
    """Return the identity of a recipe as 16 hexadecimal digits; see `identity` for arguments and errors."""
    return _hashed(identity(recipe, data_root, place))


def finished_teacher_id(recipe: Recipe, data: Dataset) -> str:
    """Return the name, 16 hexadecimal digits, under which the store has the evaluation of a finished teacher.

    Raises:
        UserError: The file of weights is absent.
    """
    of = {"teacher": _finished_teacher(recipe), "data": recipe.data.model_dump(mode="json")}
    return _hashed({"recipe": of, "data": data.fingerprint, "numerics": NUMERICS})


def require_weights_files(recipe: Recipe) -> None:
    """Raise UserError unless this machine can read every file of weights that a recipe names."""
    networks: list[tuple[str, Network]] = [("recipe.student", recipe.student), *teachers_above(recipe)]
    for place, network in networks:
        if isinstance(network.weights, WeightsFile):
            weights_source(network, place)
        if isinstance(network, Teacher) and network.trained is not None:
            content_digest(network.trained, f"{place}.trained")


def _hashed(value: dict[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=8).hexdigest()


def _teacher(recipe: Recipe, data_root: Path, place: str) -> dict[str, Any]:
    """Return the identity of a recipe's one teacher, which is written at `place`."""
    taught_by = teacher_recipe(recipe)
    return _finished_teacher(recipe, place) if taught_by is None else identity(taught_by, data_root, place)


def _finished_teacher(recipe: Recipe, place: str = "recipe.teacher") -> dict[str, Any]:
    """Return the identity of a finished teacher: its network, its image shape if it has its own, its file's content."""
    (teacher,), shape = recipe.teachers, recipe.data.image_shape
    assert teacher.trained is not None
    network = teacher.model_dump(mode="json", exclude={"trained", "data", "method", "teacher"})
    own = teacher.image_shape(shape)
    return {
        **network,
        **({} if own == shape else {"image_shape": list(own)}),
        "sha256": content_digest(teacher.trained, f"{place}.trained"),
    }


def _starting_weights(recipe: Recipe, place: str) -> list[str] | None:
    """Return what names the weights that the student begins with: part, release or file's content, and weights_key."""
    weights = recipe.student.weights
    if weights is None:
        return None
    part, key = ("network", None) if weights == "imagenet" else (weights.part, weights.weights_key)
    return [part, str(weights_source(recipe.student, place)), *([key] if key else [])]
