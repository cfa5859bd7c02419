"""Build a Classifier by name; `registry` has the table of models."""

from functools import lru_cache

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from kdtrain.errors import UserError
from kdtrain.models.classifier import Classifier
from kdtrain.models.config import Head, Network
from kdtrain.models.feature_taps import dry_forward, evaluation_mode
from kdtrain.models.registry import MODELS, model
from kdtrain.models.source import ImageShape
from kdtrain.models.weights import load_network_weights
from kdtrain.runtime.rng import seeded

HIDDEN_FEATURES = 1000


def build(
    network: Network,
    image_shape: ImageShape,
    classes: int,
    seed: int,
    *,
    pretrained: bool = True,
    place: str = "recipe.student",
) -> Classifier:
    """Return a network with random weights drawn from `seed`, then loaded with the weights that the config names.

    The caller's random number generators are left as they were.

    Args:
        network: the config.
        image_shape: (C, H, W) of the images.
        classes: number of classes K.
        seed: of the random weights.
        pretrained: False leaves the weights of the config out, e.g. if a checkpoint is loaded next.
        place: key of the config in the recipe, with which an error begins.

    Raises:
        UserError: if the network cannot take such images, or its weights cannot be loaded.
    """
    entry = model(network.model)
    with seeded(seed):
        backbone = entry.source.backbone(image_shape, {name: getattr(network, name) for name in entry.source.takes})
        if backbone.head is not None:
            head = backbone.head(backbone.features, classes)
        else:
            head = _head(network.head, backbone.features, classes, network.dropout)
    classifier = Classifier(
        network.model,
        backbone.encoder,
        head,
        image_shape,
        channels=backbone.channels,
        normalization=network.normalization,
        taps=backbone.taps or entry.taps or None,
        freezing=network.freeze,
        freeze_statistics=network.batch_norm_statistics == "keep",
        channels_last=network.channels_last,
        compiled=network.compile,
        max_norm=network.max_norm,
    )
    if network.model not in MODELS:
        _check_image_shape(classifier, place)
    if pretrained:
        load_network_weights(classifier, network, backbone, f"{place}.weights")
    return classifier


def shapes_only(network: Network, image_shape: ImageShape, classes: int) -> Classifier:
    """Return a network on the meta device, without memory and time; see `build` for arguments and errors."""
    try:
        with torch.device("meta"):
            return build(network, image_shape, classes, 0, pretrained=False)
    except NotImplementedError:  # torchvision's RegNets compute their widths with tensors
        return build(network, image_shape, classes, 0, pretrained=False)


def _head(kind: Head, features: int, classes: int, dropout: float) -> nn.Sequential:
    """Return a head; hidden is that of setup 1 (maximzubkov/cnn-distillation, `encoder.fc`)."""
    if kind == "linear":
        return nn.Sequential(nn.Dropout(dropout), nn.Linear(features, classes))
    return nn.Sequential(
        nn.Linear(features, HIDDEN_FEATURES), nn.Dropout(dropout), nn.BatchNorm1d(HIDDEN_FEATURES), nn.ReLU(),
        nn.Linear(HIDDEN_FEATURES, classes),
    )  # fmt: skip


def _check_image_shape(classifier: Classifier, place: str) -> None:
    """Raise UserError if a dry forward fails: a library's network may take one image size only."""
    try:
        dry_forward(classifier, classifier.image_shape)
    except (RuntimeError, AssertionError, ValueError) as error:
        shape = "x".join(map(str, classifier.image_shape))
        cause = " ".join(str(error).split())[:160]
        raise UserError(f"{place}.model: {classifier.name} cannot take images of {shape} ({cause})") from None


def parameter_count(network: nn.Module) -> int:
    """Return the number of parameters, frozen ones included."""
    return sum(parameter.numel() for parameter in network.parameters())


def forward_flops(network: nn.Module, image_shape: ImageShape) -> int:
    """Return the FLOPs (2 per multiply-add) of one image's forward pass in evaluation mode, counted by running it."""
    device = next(network.parameters()).device
    with torch.no_grad(), evaluation_mode(network), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, *image_shape, device=device))
    return int(counter.get_total_flops())


@lru_cache(maxsize=64)
def network_size(network: Network, image_shape: ImageShape, classes: int) -> tuple[int, int]:
    """Return the number of parameters and the FLOPs of one image's forward pass.

    Both come from shapes alone; a network whose forward pass reads numbers is built in memory.
    """
    try:
        built = shapes_only(network, image_shape, classes)
        return parameter_count(built), forward_flops(built, image_shape)
    except RuntimeError:
        built = build(network, image_shape, classes, 0, pretrained=False)
        return parameter_count(built), forward_flops(built, image_shape)
