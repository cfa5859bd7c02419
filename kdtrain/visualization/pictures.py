"""What needs networks or training images to be drawn, as small arrays that analysis draws.

Which pictures there are is the recipe's to say: each part gives its arrays, none where the recipe has no such picture,
or `<picture>_reason`, a sentence, where it cannot be made.
"""

from collections.abc import Sequence

from kdtrain.config.recipe import Recipe
from kdtrain.storage.folder import Folder
from kdtrain.training.final_evaluation import arrays_file
from kdtrain.trials.workspace import Workspace
from kdtrain.visualization.attention import attention
from kdtrain.visualization.gradcam import gradcam
from kdtrain.visualization.networks import Networks
from kdtrain.visualization.softened import softened
from kdtrain.visualization.training import lr_schedule, mixed_images

FILE = "pictures.npz"


def draw_arrays(recipe: Recipe, workspace: Workspace, folder: Folder, compared: Sequence[Recipe] = ()) -> None:
    """Writes pictures.npz for a winning recipe.

    compared: distilled students, one for each value of student.freeze, and students alone, the best first; all have
    kept their weights.
    """
    folder.remove(FILE)  # of an earlier winner, where this one's cannot be made
    networks = Networks(workspace)
    data = workspace.dataset(recipe.data)
    arrays = softened(recipe, data, networks) | attention(recipe, compared, data, networks)
    for distilled in compared:
        if distilled.teacher is not None:
            arrays |= gradcam(distilled, compared, workspace.dataset(distilled.data), networks)
    arrays |= lr_schedule(recipe, data) | mixed_images(recipe, data)
    folder.write(FILE, arrays_file(arrays))
