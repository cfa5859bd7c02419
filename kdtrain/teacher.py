"""Teacher: a trained network that is only read. Evaluation mode, no gradient, never in a student's checkpoint."""

from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from kdtrain.errors import UserError
from kdtrain.methods import Outputs


def load_weights(network: nn.Module, weights: Path) -> None:
    """Raises UserError where the file cannot be read or holds another network's weights."""
    try:
        network.load_state_dict(safetensors.torch.load_file(weights))
    except (OSError, SafetensorError) as error:
        raise UserError(f"recipe.teacher: {weights} is no whole safetensors file ({error})") from None
    except RuntimeError as error:
        detail = " ".join(str(error).split())[:300]
        raise UserError(f"recipe.teacher: {weights} does not fit the model ({detail})") from None


class Teacher:
    """Answers with Outputs for images [N, C, H, W] and counts the images that it was asked."""

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        self.network = network.eval().requires_grad_(False).to(device)
        self.images = 0

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Outputs:
        self.images += len(images)
        return Outputs(self.network(images))
