"""Teacher: a trained network that is only read. Evaluation mode, no gradient, never in a student's checkpoint."""

from pathlib import Path

import torch
from torch import Tensor

from kdtrain.errors import UserError
from kdtrain.methods import Outputs
from kdtrain.models import Classifier
from kdtrain.models.weights import read_state


def load_weights(network: Classifier, weights: Path, place: str = "recipe.teacher") -> None:
    """Weights that a training has kept. Raises UserError where the file cannot be read or is another network's."""
    state = read_state(weights, place)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        detail = " ".join(str(error).split())[:300]
        raise UserError(f"{place}: {weights} does not fit the model ({detail})") from None


class Teacher:
    """Answers with Outputs for images [N, C, H, W] and counts the images that it was asked."""

    def __init__(self, network: Classifier, device: torch.device, stages: tuple[str, ...] = ()) -> None:
        self.network = network.eval().requires_grad_(False).to(device)
        self.stages = stages
        self.images = 0

    @torch.no_grad()  # not inference_mode: a loss may keep these tensors for its backward
    def __call__(self, images: Tensor) -> Outputs:
        self.images += len(images)
        return Outputs(*self.network.outputs(images, self.stages))
