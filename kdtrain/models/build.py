"""Networks by name: a Classifier from what a recipe says. The table of models is in `table`."""

import torch
from torch import nn

from kdtrain.errors import UserError
from kdtrain.models.classifier import Classifier
from kdtrain.models.config import Network
from kdtrain.models.feature_taps import dry_forward, evaluating
from kdtrain.models.heads import make_head
from kdtrain.models.registry import MODELS, model
from kdtrain.models.source import ImageShape
from kdtrain.models.weights import load_network_weights


def build(
    network: Network,
    image_shape: ImageShape,
    classes: int,
    seed: int,
    *,
    pretrained: bool = True,
    place: str = "recipe.student",
) -> Classifier:
    """A network with fresh weights drawn from `seed`, and over them those that the config names.

    pretrained=False leaves these out: for a plan, or where a checkpoint follows. The caller's random numbers are left
    as they were. Raises UserError, beginning with `place` where the recipe is to be changed.
    """
    entry = model(network.model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts = entry.source.parts(image_shape)
        if parts.head is not None:
            head = parts.head(parts.features, classes)
        else:
            head = make_head(network.head, parts.features, classes, network.dropout)
    classifier = Classifier(
        network.model,
        parts.encoder,
        head,
        image_shape,
        channels=parts.channels,
        normalization=network.normalization,
        taps=entry.taps or None,
        freezing=network.freeze,
        keep_statistics=network.batch_norm_statistics == "keep",
        channels_last=network.channels_last,
        compiled=network.compile,
    )
    if network.model not in MODELS:
        _try(classifier, place)
    if pretrained:
        load_network_weights(classifier, network, parts, f"{place}.weights")
    return classifier


def _try(classifier: Classifier, place: str) -> None:
    """A network of which nothing is known may take one image size only, or give no pooled features."""
    try:
        dry_forward(classifier, classifier.image_shape)
    except (RuntimeError, AssertionError, ValueError) as error:
        shape = "x".join(map(str, classifier.image_shape))
        cause = " ".join(str(error).split())[:160]
        raise UserError(f"{place}.model: {classifier.name} cannot take images of {shape} ({cause})") from None


def parameter_count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def forward_flops(network: nn.Module, image_shape: ImageShape) -> int:
    """FLOPs (2 per multiply-add) of one image's forward pass in evaluation mode, counted by running it."""
    from kdtrain.models.flops import Flops  # it imports triton

    device = next(network.parameters()).device
    with torch.no_grad(), evaluating(network), Flops() as counted:
        network(torch.zeros(1, *image_shape, device=device))
    return int(counted.total)
