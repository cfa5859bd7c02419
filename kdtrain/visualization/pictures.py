"""pictures.npz: small arrays for the pictures that need networks or training images. Analysis draws them.

Each picture's function returns its arrays, {} if the recipe has no such picture, or `<picture>_reason`, a sentence, if
the picture cannot be made.
"""

from collections.abc import Sequence

from kdtrain.config.recipe import Recipe
from kdtrain.storage.folder import Folder
from kdtrain.training.final_evaluation import arrays_file
from kdtrain.training.precision import backend_settings
from kdtrain.trials.store import PICTURES
from kdtrain.trials.workspace import Workspace
from kdtrain.visualization.attention import attention
from kdtrain.visualization.gradcam import gradcam
from kdtrain.visualization.networks import Networks
from kdtrain.visualization.softened import softened
from kdtrain.visualization.training import lr_schedule, mixed_images


def draw_arrays(recipe: Recipe, workspace: Workspace, folder: Folder, compared: Sequence[Recipe] = ()) -> None:
    """Write pictures.npz for a winning recipe.

    Args:
        recipe: The winner.
        workspace: The workspace whose store has the weights of all these recipes.
        folder: The study's folder.
        compared: Distilled students, one for each value of student.freeze, and students alone, the best first.
    """
    folder.remove(PICTURES)  # that of an earlier winner must not stay if this one's cannot be made
    networks = Networks(workspace)
    data = workspace.dataset(recipe.data)
    with backend_settings("fp32", networks.device):
        arrays = softened(recipe, data, networks) | attention(recipe, compared, data, networks)
        for distilled in compared:
            if distilled.teacher is not None:
                arrays |= gradcam(distilled, compared, workspace.dataset(distilled.data), networks)
    arrays |= lr_schedule(recipe, data) | mixed_images(recipe, data)
    folder.write(PICTURES, arrays_file(arrays))
