"""Teachers with data of their own: their classes, and the student's images that they were trained on."""

from kdtrain.config.needed_trainings import chain
from kdtrain.config.recipe import Recipe
from kdtrain.data.base import Dataset
from kdtrain.data.registry import AnyData
from kdtrain.errors import UserError
from kdtrain.methods.none import NoDistillation
from kdtrain.trials.records import SharedImages
from kdtrain.trials.workspace import Workspace


def require_same_classes(recipe: Recipe, data: Dataset, workspace: Workspace) -> None:
    """Raise UserError if a teacher's own data have other classes than the recipe's, `data`."""
    for config in dict.fromkeys(teacher.data for teacher in recipe.teachers):
        if config is None or config == recipe.data:
            continue
        own = _at_resolution_of(recipe, config, workspace)
        if own.classes != data.classes:
            other = sorted(set(own.classes) ^ set(data.classes))
            raise UserError(
                f"recipe.teacher.data: must have the classes of recipe.data, {len(data.classes)}, got"
                f" {len(own.classes)}; only one of the two has {', '.join(other[:3])}"
            )


def shared_images(recipe: Recipe, data: Dataset, workspace: Workspace) -> SharedImages | None:
    """Return how many images of each of the student's splits its one teacher was trained on, by their content.

    They are the labelled training images of the teacher, of its teachers and so on, and all training images of a
    teacher that was distilled itself. Those of a finished teacher are unknown, and count as none.

    Returns:
        None if no teacher has data of its own.
    """
    teachers = chain(recipe)[:-1]
    if all(each.data == recipe.data for each in teachers):
        return None
    seen: set[str] = set()
    for each in teachers:
        own = _at_resolution_of(recipe, each.data, workspace).train
        digests = own.images.digests()
        by_labels = isinstance(each.method, NoDistillation)
        seen.update([digests[i] for i in own.labelled.tolist()] if by_labels else digests)
    train, val, test = (sum(digest in seen for digest in split.images.digests()) for split in data.splits())
    return {"train": train, "val": val, "test": test}


def _at_resolution_of(recipe: Recipe, config: AnyData, workspace: Workspace) -> Dataset:
    """Return a teacher's data at the student's resolution: images in memory are recognised by their resized pixels."""
    return workspace.dataset(config.model_copy(update={"resolution": recipe.data.resolution}))
