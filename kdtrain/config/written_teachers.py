"""The teachers of a recipe as plain data, in each of the forms that a user can write.

One teacher is `{model: ...}`. Several are a list of such mappings, or `{ensemble: {of: ...}}` with a list or, beside
`seeds`, with one mapping.
"""

from collections.abc import Callable
from typing import Any

from kdtrain.config.problems import KeyPath

Written = dict[str, Any]


def written_teachers(teacher: Any) -> list[tuple[KeyPath, Written]]:
    """Return each mapping that describes a network, with its path below `teacher`; what is no mapping is left out."""
    if isinstance(teacher, list):
        return [((i, *path), found) for i, item in enumerate(teacher) for path, found in written_teachers(item)]
    if not isinstance(teacher, dict):
        return []
    if isinstance(teacher.get("ensemble"), dict):
        return [(("ensemble", "of", *path), found) for path, found in written_teachers(teacher["ensemble"].get("of"))]
    return [((), teacher)]


def path_as_written(recipe: Any, path: KeyPath) -> KeyPath:
    """Return a path that numbers the teachers, teacher.1.trained, as it is written: teacher.ensemble.of.1.trained."""
    written: KeyPath = ()
    for key in path:
        if isinstance(key, int) and isinstance(recipe, dict) and "ensemble" in recipe:
            written, recipe = (*written, "ensemble", "of"), recipe["ensemble"]["of"]
            if isinstance(recipe, dict):  # one teacher that is trained with several seeds
                continue
        written = (*written, key)
        if isinstance(recipe, list) and isinstance(key, int):
            recipe = recipe[key]
        else:
            recipe = recipe.get(key) if isinstance(recipe, dict) else None
    return written


def each_teacher(teacher: Any, change: Callable[[Written], Written]) -> Any:
    """Return a written teacher or ensemble with each mapping that describes a network changed."""
    for path, found in written_teachers(teacher):
        teacher = _put(teacher, path, change(found))
    return teacher


def _put(tree: Any, path: KeyPath, value: Any) -> Any:
    """Return a copy of plain data with another value at a path that exists."""
    if not path:
        return value
    key = path[0]
    if isinstance(tree, list):
        return [_put(item, path[1:], value) if i == key else item for i, item in enumerate(tree)]
    return {**tree, key: _put(tree[key], path[1:], value)}
