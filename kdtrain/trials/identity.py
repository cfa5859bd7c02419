"""The identity of a trial: the hash of everything that may change one bit of what a training learns."""

import hashlib
import json
from pathlib import Path
from typing import Any

from kdtrain.config.recipe import Recipe, Teacher, teacher_recipe
from kdtrain.data.base import Dataset
from kdtrain.data.registry import load
from kdtrain.models.config import WeightsFile
from kdtrain.models.weights import content_digest, weights_source
from kdtrain.runtime.source_code import code_digest

# 7: transparent pixels are composited and EXIF's orientation is applied; steps on a GPU use fused AdamW.
NUMERICS = 7
"""Raised when a change of the code alters results, so that old trials are not taken for new ones."""

NEWER = ("labelled_share",)
"""Fields of a recipe that 0.1.0 did not have. A recipe without them is hashed as it was then, so its trials stay."""


def identity(recipe: Recipe, data_root: Path, place: str = "recipe.student") -> dict[str, Any]:
    """Return what `trial_id` hashes. `place` is where the user wrote the student, for error messages.

    These are the recipe with its balance as two weights, the content or name of the weights that its networks begin
    with, its teacher's whole recipe and code (or the content of its file), the data's fingerprint, the code of its
    method's module as this process runs it, and NUMERICS, which stands for all other code.

    Raises:
        UserError: The data set, a file of weights or the method's source file is absent.
    """
    resolved = recipe.model_dump(mode="json", exclude={"teacher": True, "student": {"allow_random_frozen"}})
    resolved = {key: value for key, value in resolved.items() if value is not None or key not in NEWER}
    resolved["student"]["weights"] = _starting_weights(recipe, place)
    if "balance" in resolved["method"]:
        resolved["method"]["balance"] = list(recipe.method.balance.weights)  # type: ignore[union-attr]
    taught_by = teacher_recipe(recipe)
    if taught_by is not None:
        resolved["teacher"] = identity(taught_by, data_root, "recipe.teacher")
    elif recipe.teacher is not None:
        resolved["teacher"] = _finished_teacher(recipe.teacher)
    data, code = load(recipe.data, data_root), code_digest(type(recipe.method).__module__)
    return {"recipe": resolved, "data": data.fingerprint, "code": code, "numerics": NUMERICS}


def trial_id(recipe: Recipe, data_root: Path, place: str = "recipe.student") -> str:
    """Return the identity of a recipe as 16 hexadecimal digits; see `identity` for arguments and errors."""
    return _hashed(identity(recipe, data_root, place))


def finished_teacher_id(recipe: Recipe, data: Dataset) -> str:
    """Return the name, 16 hexadecimal digits, under which the store has the evaluation of a finished teacher.

    Raises:
        UserError: The file of weights is absent.
    """
    assert recipe.teacher is not None
    of = {"teacher": _finished_teacher(recipe.teacher), "data": recipe.data.model_dump(mode="json")}
    return _hashed({"recipe": of, "data": data.fingerprint, "numerics": NUMERICS})


def require_weights_files(recipe: Recipe) -> None:
    """Raise UserError unless this machine can read every file of weights that a recipe names."""
    for place, network in (("recipe.student", recipe.student), ("recipe.teacher", recipe.teacher)):
        if network is not None and isinstance(network.weights, WeightsFile):
            weights_source(network, place)
    if recipe.teacher is not None and recipe.teacher.trained is not None:
        _finished_teacher(recipe.teacher)


def _hashed(value: dict[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=8).hexdigest()


def _finished_teacher(teacher: Teacher) -> dict[str, Any]:
    """Return the identity of a finished teacher: its network, and the content of its file."""
    assert teacher.trained is not None
    network = teacher.model_dump(mode="json", exclude={"trained"})
    return {**network, "sha256": content_digest(teacher.trained, "recipe.teacher.trained")}


def _starting_weights(recipe: Recipe, place: str) -> list[str] | None:
    """Return what names the weights that the student begins with: part, release or file's content, and weights_key."""
    weights = recipe.student.weights
    if weights is None:
        return None
    part, key = ("network", None) if weights == "imagenet" else (weights.part, weights.weights_key)
    return [part, str(weights_source(recipe.student, place)), *([key] if key else [])]
