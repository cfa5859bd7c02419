"""Teacher: a trained network that is only read. Evaluation mode, no gradient, never in a student's checkpoint."""

from pathlib import Path

import torch
from torch import Tensor

from kdtrain.methods import Outputs
from kdtrain.models import Classifier
from kdtrain.models.weights import load_whole_network


def load_weights(network: Classifier, weights: Path, place: str = "recipe.teacher") -> None:
    """Weights that a training has kept, ours or one with the library's names.

    Raises UserError, beginning with `place`, where the file cannot be read or is another network's.
    """
    load_whole_network(network, weights, place)


class Teacher:
    """Answers with Outputs for images [N, C, H, W] and counts the images that it was asked."""

    def __init__(self, network: Classifier, device: torch.device, stages: tuple[str, ...] = ()) -> None:
        self.network = network.eval().requires_grad_(False).to(device)
        self.stages = stages
        self.images = 0

    def __call__(self, images: Tensor) -> Outputs:
        self.images += len(images)
        with torch.inference_mode():
            logits, features = self.network.outputs(images, self.stages)
        # copies outside of it: a loss may keep these tensors for its backward
        return Outputs(logits.clone(), {stage: maps.clone() for stage, maps in features.items()})
