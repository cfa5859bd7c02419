"""Weights of networks: found in files, loaded from libraries, and named for the identity of a trial."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from itertools import takewhile
from pathlib import Path

import torch
from torch import Tensor

from kdtrain.errors import UserError
from kdtrain.models.checkpoints import is_averaged, read_weights, readable
from kdtrain.models.classifier import Classifier
from kdtrain.models.config import Network, WeightsFile
from kdtrain.models.registry import MODELS, model
from kdtrain.models.source import Backbone, ImageShape
from kdtrain.models.torchvision_source import names as torchvision_names
from kdtrain.storage.folder import sha256

SHOWN_NAMES = 3
WITHOUT_HEAD = "part: encoder leaves the head out"
FINISHED = "to train it further from the file's encoder, write weights: {file: FILE, part: encoder} instead of trained"


@dataclass(frozen=True)
class WeightSet:
    """One set of weights of a file.

    Attributes:
        key: Its dotted path in the file, which goes on within the names of a state dict: `state_dict.model` are the
            weights of a LightningModule's network `model`. "" is the whole file.
        written: The weights under their names in the file, from this path on.
        state: The weights under the names of a Classifier.
    """

    key: str
    written: dict[str, Tensor]
    state: dict[str, Tensor]


def load_network_weights(network: Classifier, config: Network, backbone: Backbone, place: str) -> None:
    """Load the weights that the config names into the network, which was built from `backbone`."""
    if config.weights == "imagenet":
        with errors_at(place):
            state = with_own_names(model(config.model).source.imagenet(), backbone)
        load_state(network, _encoder_only(state), f"{place}: imagenet", "encoder")
    elif isinstance(config.weights, WeightsFile):
        weights = config.weights
        sets = fitting_sets(
            network, weights.file, f"{place}.file", weights.part, weights.weights_key, lambda: backbone, WITHOUT_HEAD
        )
        network.load_state_dict(sets[0].state, strict=False)


def load_whole_network(network: Classifier, file: Path, place: str, weights_key: str | None = None) -> None:
    """Load every tensor of a trained network from a file of this program, or one with the library's names."""
    sets = fitting_sets(network, file, place, weights_key=weights_key, hint=FINISHED)
    broken = [name for name, value in sets[0].state.items() if not value.isfinite().all()]
    if broken:
        raise UserError(f"{place}: {file} has weights that are NaN or infinite: {_first(broken)}")
    network.load_state_dict(sets[0].state, strict=False)


def fitting_sets(
    network: Classifier,
    file: str | Path,
    place: str,
    part: str = "network",
    weights_key: str | None = None,
    backbone: Callable[[], Backbone] | None = None,
    hint: str = "",
) -> list[WeightSet]:
    """Return the sets of weights of a file that fit a part of the network ("network" or "encoder"), at least one.

    The first one is taken. Averaged weights come last, the others in the file's order.

    Args:
        network: The network that takes the weights.
        file: The file.
        place: The file's key in the recipe, with which an error begins.
        part: "network", or "encoder" to leave the head out.
        weights_key: The path of the wanted set, or the beginning of its path; None: any set.
        backbone: Gives the backbone with the library's names; None builds it if the file has such names.
        hint: The end of the error if only the head does not fit.

    Raises:
        UserError: No set fits; the text names the nearest one's differences and the remedy.
    """
    library = backbone or cache(lambda: _library_backbone(network.name, network.image_shape))
    sets, own = read_weights(file, place), _own_state(network, part)
    known = [found for key, state in sets.items() for found in _candidates(key, state, own, part, library)]
    tried = [found for found in known if weights_key is None or f"{found.key}.".startswith(f"{weights_key}.")]
    what = f"{place}: {file}"
    if not tried:
        choices = ", ".join(dict.fromkeys(found.key for found in known if found.key))
        hint = f"choices: {choices}" if choices else "it has one set of weights only; remove weights_key"
        raise UserError(f"{what} has no weights at weights_key {weights_key}; {hint}")
    fitting = [found for found in tried if not any(_differences(own, found.state))]
    if not fitting:
        nearest = max(tried, key=lambda found: (_matches(own, found.state), -len(found.key)))
        raise _misfit(network, nearest, what, part, hint)
    distinct: dict[int, WeightSet] = {}  # by first tensor: the same weights may fit under two prefixes
    for found in fitting:
        distinct.setdefault(id(found.state[next(iter(own))]), found)
    return sorted(distinct.values(), key=lambda found: is_averaged(found.key))


def load_state(network: Classifier, state: dict[str, Tensor], what: str, part: str) -> None:
    """Load a part of the network ("network" or "encoder") as a whole, or raise a UserError that begins with `what`."""
    if any(_differences(_own_state(network, part), state)):
        raise _misfit(network, WeightSet("", state, state), what, part)
    network.load_state_dict(state, strict=False)


def weights_source(network: Network, place: str = "recipe.student") -> str | None:
    """Return what names the starting weights in a trial's identity: a library's name or a file's SHA-256; or None."""
    if network.weights is None:
        return None
    if isinstance(network.weights, WeightsFile):
        return content_digest(network.weights.file, f"{place}.weights.file")
    with errors_at(f"{place}.weights"):
        return model(network.model).source.imagenet_name()


def content_digest(path: str | Path, place: str) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits. A process reads an unchanged file once."""
    with readable(path, place) as path:
        return sha256(path)


@contextmanager
def errors_at(place: str) -> Iterator[None]:
    """Put the place before every UserError of the block."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{place}: {error}") from None


def with_own_names(state: dict[str, Tensor], backbone: Backbone) -> dict[str, Tensor]:
    """Return a state dict under the names of a Classifier: a library's classifier becomes head.1, the rest encoder."""
    if _has_own_names(state):
        return state
    renamed = {}
    for name, value in state.items():
        if name.startswith(backbone.ignored):
            continue
        if backbone.classifier and name.startswith(backbone.classifier + "."):
            name = "head.1" + name.removeprefix(backbone.classifier)
            value = value.flatten(1) if value.ndim == 4 else value  # BiT's classifier is a 1x1 convolution
        else:
            name = "encoder." + name
        renamed[name] = value
    return renamed


def _library_backbone(name: str, image_shape: ImageShape) -> Backbone:
    """Build a model's backbone for the library's names, on the meta device, where it takes no memory."""
    source = model(name).source
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):
                return source.backbone(image_shape, {})
        except NotImplementedError:  # torchvision's RegNets compute their widths with tensors
            return source.backbone(image_shape, {})


def _own_state(network: Classifier, part: str) -> dict[str, Tensor]:
    state = network.state_dict()
    return _encoder_only(state) if part == "encoder" else state


def _candidates(
    key: str, state: dict[str, Tensor], own: Mapping[str, Tensor], part: str, library: Callable[[], Backbone]
) -> Iterator[WeightSet]:
    """Yield the sets that a state dict may hold: one for each prefix of a network's names, such as DDP's `module.`."""
    for prefix in _prefixes(state, own):
        written = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        named = written if _has_own_names(written) else with_own_names(written, library())
        named = _encoder_only(named) if part == "encoder" else named
        yield WeightSet(".".join(filter(None, (key, prefix.removesuffix(".")))), written, named)
        if not prefix and not any(_differences(own, named)):
            return  # all names are the network's


def _prefixes(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    """Return what stands before the encoder's first name, as this package or the library writes it, "" first.

    The prefix that all names share comes last; it serves the error about weights of another network.
    """
    first = next(filter(_in_encoder, own))
    ends = (first, first.removeprefix("encoder."))
    found = [name.removesuffix(end) for end in ends for name in state if f".{name}".endswith(f".{end}")]
    parents = [name.split(".")[:-1] for name in state]
    shared = takewhile(lambda parts: len(set(parts)) == 1, zip(*parents, strict=False))
    return list(dict.fromkeys([*sorted(found, key=bool), "".join(f"{parts[0]}." for parts in shared)]))


def _matches(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> int:
    return sum(name in state and state[name].shape == value.shape for name, value in own.items())


def _differences(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> tuple[list[str], list[str], list[str]]:
    """Return the names that a state dict lacks, those that the network lacks, and those that it cannot take."""
    # Files from before PyTorch 0.4.1 have no such counter; BatchNorm reads it only without a momentum.
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in own]
    misfits = []
    for name, value in own.items():
        given = state.get(name, value)
        if given.shape != value.shape:
            misfits.append(f"{name} {list(given.shape)} for {list(value.shape)}")
        elif given.is_quantized or given.is_floating_point() != value.is_floating_point():
            misfits.append(f"{name} {given.dtype} for {value.dtype}".replace("torch.", ""))
        elif given.is_meta and not value.is_meta:
            misfits.append(f"{name} without values (saved from torch's meta device)")
        elif given.layout != torch.strided:
            misfits.append(f"{name} {given.layout} for a dense tensor".replace("torch.", ""))
    return missing, unexpected, misfits


def _misfit(network: Classifier, nearest: WeightSet, what: str, part: str, hint: str = "") -> UserError:
    """Return the error about weights that do not fit; `hint` ends it if only the head does not."""
    own = _own_state(network, part)
    missing, unexpected, misfits = _differences(own, nearest.state)
    labels = ("missing", "not of this network", "other shape or type")
    causes = [
        f"{label} {_first(names)}" for label, names in zip(labels, (missing, unexpected, misfits), strict=True) if names
    ]
    only_head = part == "network" and _only_head(missing, unexpected, misfits)
    counts = _class_counts(own, nearest.state) if only_head and not missing and not unexpected else None
    if counts is not None:
        causes = ["the file has {} classes, the data {}".format(*counts)]
    if only_head:
        causes += [hint] if hint else []
    elif (name := _model_of(nearest.written, network)) is not None:
        causes.append(f"these are the weights of {name}: write model: {name}")
    at = f" at {nearest.key}" if nearest.key else ""
    return UserError(f"{what}{at} does not fit {network.name}: {'; '.join(causes)}")


def _model_of(written: dict[str, Tensor], network: Classifier) -> str | None:
    """Return another model whose encoder takes the weights, among those of `MODELS` and the network's family."""
    family = re.match("[a-z]*", network.name)
    relatives = [name for name in torchvision_names() if family is not None and name.startswith(family[0])]
    for name in dict.fromkeys([*MODELS, *sorted(relatives)]):
        with suppress(UserError, NotImplementedError, RuntimeError, ValueError), torch.device("meta"):
            backbone = model(name).source.backbone(network.image_shape, {})
            own = backbone.encoder.state_dict(prefix="encoder.")
            given = _encoder_only(with_own_names(written, backbone))
            if name != network.name and not any(_differences(own, given)):
                return name
    return None


def _has_own_names(state: dict[str, Tensor]) -> bool:
    return all(name.startswith(("encoder.", "head.")) for name in state) and any(map(_in_encoder, state))


def _class_counts(own: dict[str, Tensor], state: dict[str, Tensor]) -> tuple[int, int] | None:
    """Return (K of the file, K of the network) if only the last layer differs, of shapes [K, features] and [K]."""
    last_layer = list(own)[-1].rpartition(".")[0]
    counts = set()
    for name, value in own.items():
        given = state.get(name, value).shape
        if given == value.shape:
            continue
        if name.rpartition(".")[0] != last_layer or len(given) != value.ndim or given[1:] != value.shape[1:]:
            return None
        counts.add((given[0], value.shape[0]))
    return counts.pop() if len(counts) == 1 else None


def _in_encoder(name: str) -> bool:
    return name.startswith("encoder.")


def _encoder_only(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if _in_encoder(name)}


def _only_head(*problems: list[str]) -> bool:
    return all(name.startswith("head.") for names in problems for name in names)


def _first(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    return ", ".join(names[:SHOWN_NAMES]) + more
