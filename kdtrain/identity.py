"""trial_id: the hash of everything that may change one bit of what a training learns."""

import hashlib
import json
from pathlib import Path
from typing import Any

from kdtrain.config.recipe import Recipe, Teacher, teacher_recipe
from kdtrain.data import load
from kdtrain.errors import UserError

NUMERICS = 1
"""Raised when a change of the code alters results, so that old trials are not taken for new ones."""


def identity(recipe: Recipe, data_root: Path) -> dict[str, Any]:
    """What is hashed: the resolved recipe with its balance as two weights, its teacher's whole recipe (or the
    content of its file) and the data's fingerprint. Raises UserError where data or file are absent."""
    resolved = recipe.model_dump(mode="json", exclude={"teacher"})
    if "balance" in resolved["method"]:
        resolved["method"]["balance"] = list(recipe.method.balance.weights)  # type: ignore[union-attr]
    taught_by = teacher_recipe(recipe)
    if taught_by is not None:
        resolved["teacher"] = identity(taught_by, data_root)
    elif recipe.teacher is not None:
        resolved["teacher"] = {"model": recipe.teacher.model, "sha256": file_digest(recipe.teacher)}
    data = load(recipe.data, data_root)
    return {"recipe": resolved, "data": data.fingerprint, "numerics": NUMERICS}


def trial_id(recipe: Recipe, data_root: Path) -> str:
    """16 hexadecimal digits."""
    text = json.dumps(identity(recipe, data_root), sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def file_digest(teacher: Teacher) -> str:
    """SHA-256 of a teacher's weights file; UserError where it cannot be read."""
    assert teacher.file is not None
    try:
        return hashlib.sha256(Path(teacher.file).read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"recipe.teacher.file: {teacher.file} cannot be read ({error.strerror})") from None
