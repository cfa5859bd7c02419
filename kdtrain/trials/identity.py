"""The identity of a trial: the hash of everything that may change one bit of what a training learns."""

import hashlib
import json
from pathlib import Path
from typing import Any

from kdtrain.config.recipe import Recipe, teacher_recipe
from kdtrain.data.registry import load
from kdtrain.models.weights import content_digest, weights_source
from kdtrain.runtime.source_code import code_digest

# 6: batch normalization is no longer folded into convolutions, which changes evaluated logits by rounding.
NUMERICS = 6
"""Raised when a change of the code alters results, so that old trials are not taken for new ones."""


def identity(recipe: Recipe, data_root: Path, place: str = "recipe.student") -> dict[str, Any]:
    """Return what `trial_id` hashes. `place` is where the user wrote the student, for error messages.

    These are the recipe with its balance as two weights, the content or name of the weights that its networks begin
    with, its teacher's whole recipe and code (or the content of its file), the data's fingerprint, the code of its
    method's module as this process runs it, and NUMERICS, which stands for all other code.

    Raises:
        UserError: The data set, a file of weights or the method's source file is absent.
    """
    resolved = recipe.model_dump(mode="json", exclude={"teacher": True, "student": {"allow_random_frozen"}})
    resolved["student"]["weights"] = _starting_weights(recipe, place)
    if "balance" in resolved["method"]:
        resolved["method"]["balance"] = list(recipe.method.balance.weights)  # type: ignore[union-attr]
    taught_by = teacher_recipe(recipe)
    if taught_by is not None:
        resolved["teacher"] = identity(taught_by, data_root, "recipe.teacher")
    elif recipe.teacher is not None:
        assert recipe.teacher.file is not None
        teacher = recipe.teacher.model_dump(mode="json", exclude={"file"})
        resolved["teacher"] = {**teacher, "sha256": file_digest(recipe.teacher.file)}
    data, code = load(recipe.data, data_root), code_digest(type(recipe.method).__module__)
    return {"recipe": resolved, "data": data.fingerprint, "code": code, "numerics": NUMERICS}


def trial_id(recipe: Recipe, data_root: Path, place: str = "recipe.student") -> str:
    """Return the identity of a recipe as 16 hexadecimal digits; see `identity` for arguments and errors."""
    text = json.dumps(identity(recipe, data_root, place), sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def file_digest(file: str) -> str:
    """Return the SHA-256 of a teacher's weights file; UserError if it cannot be read."""
    return content_digest(file, "recipe.teacher.file")


def _starting_weights(recipe: Recipe, place: str) -> list[str] | None:
    """Return the part and the release, or the content of the file, of the weights that the student begins with."""
    weights = recipe.student.weights
    if weights is None:
        return None
    part = "network" if weights == "imagenet" else weights.part
    return [part, str(weights_source(recipe.student, place))]
