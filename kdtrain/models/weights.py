"""Weights of networks: read from files, loaded from libraries, and named for the identity of a trial."""

import hashlib
import pickle
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from kdtrain.errors import UserError
from kdtrain.models.classifier import Classifier
from kdtrain.models.config import Network, WeightsFile
from kdtrain.models.registry import model
from kdtrain.models.source import Backbone

SHOWN_NAMES = 3
SETTLED_S = 1.0
"""A file that changed less than this ago may change again within one tick of the file system's clock."""
WITHOUT_HEAD = "part: encoder leaves the head out"
TORCH_MAGIC = (b"PK", b"\x80")
"""First bytes of a file of torch.save: a zip archive, or a pickle before PyTorch 1.6. The unpickler reads any text."""


def read_state(path: str | Path, place: str) -> dict[str, Tensor]:
    """Return the tensors of a .safetensors file, or of a file of torch.save, without running code from it.

    A UserError begins with `place`, the key of the file in the recipe.
    """
    with _readable(path, place) as path, path.open("rb") as file:
        pickled = path.suffix != ".safetensors"
        by_torch = file.read(2).startswith(TORCH_MAGIC)
    try:
        content: Any = _torch_load(path) if pickled else load_file(path)
    # On a text or a damaged file the unpickler may raise any error: KeyError, IndexError, AttributeError. No code of
    # this package runs in there, so no defect is hidden.
    except Exception as error:
        if by_torch and isinstance(error, pickle.UnpicklingError) and "Unsupported operand" not in str(error):
            raise UserError(
                f"{place}: {path} holds more than tensors (pickled code is never run); save the network's state_dict()"
            ) from None
        cause = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        if pickled and not by_torch:
            cause = "torch.save did not write it"
        raise UserError(f"{place}: {path} is no whole weights file ({cause})") from None
    for wrapper in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    found = _no_state_dict(content)
    if found is not None:
        raise UserError(f"{place}: {path} holds no state_dict (names and tensors), but {found}")
    # DistributedDataParallel adds this prefix to every name.
    return {name.removeprefix("module."): value for name, value in content.items()}


def load_network_weights(network: Classifier, config: Network, backbone: Backbone, place: str) -> None:
    """Load the weights that the config names into the network, which was built from `backbone`."""
    if config.weights == "imagenet":
        with errors_at(place):
            state = with_own_names(model(config.model).source.imagenet(), backbone)
        load_state(network, _encoder_only(state), f"{place}: imagenet", "encoder")
    elif isinstance(config.weights, WeightsFile):
        place = f"{place}.file"
        state = with_own_names(read_state(config.weights.file, place), backbone)
        if config.weights.part == "encoder":
            state = _encoder_only(state)
        load_state(network, state, f"{place}: {config.weights.file}", config.weights.part, WITHOUT_HEAD)


def load_whole_network(network: Classifier, file: Path, place: str) -> None:
    """Load every tensor of a trained network from a file of this program, or one with the library's names."""
    state = read_state(file, place)
    if not _has_own_names(state):
        state = with_own_names(state, _library_backbone(network))
    load_state(network, state, f"{place}: {file}", "network")


def load_state(network: Classifier, state: dict[str, Tensor], what: str, part: str, without_head: str = "") -> None:
    """Load all tensors of a part of the network ("network" or "encoder"), or none: then a UserError begins with `what`.

    `without_head` is a hint at the end of the error if only the head does not fit.
    """
    own = {name: value for name, value in network.state_dict().items() if part == "network" or _in_encoder(name)}
    # Files from before PyTorch 0.4.1 have no such counter; BatchNorm reads it only without a momentum.
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in own]
    misfits = [
        f"{name} {list(state[name].shape)} for {list(value.shape)}"
        for name, value in own.items()
        if name in state and state[name].shape != value.shape
    ]
    causes = [
        f"{kind} {_first(names)}"
        for kind, names in (("missing", missing), ("not of this network", unexpected), ("other shape", misfits))
        if names
    ]
    counts = _class_counts(own, state) if part == "network" and not missing and not unexpected else None
    if counts is not None:
        causes = ["the file has {} classes, the data {}".format(*counts)]
    if causes:
        if without_head and part == "network" and _only_head(missing, unexpected, misfits):
            causes.append(without_head)
        raise UserError(f"{what} does not fit {network.name}: {'; '.join(causes)}")
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
    with _readable(path, place) as path:
        stat = path.stat()
        stamp = stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns
        settled = time.time() > stat.st_ctime + SETTLED_S
        return _digest_once(path, stamp) if settled else _digest(path)


@lru_cache(maxsize=64)
def _digest_once(path: Path, stamp: tuple[int, ...]) -> str:
    return _digest(path)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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


@contextmanager
def _readable(path: str | Path, place: str) -> Iterator[Path]:
    """Give the path with ~ expanded, and turn an OSError of the block into a UserError."""
    try:
        path = Path(path).expanduser()
    except RuntimeError as error:  # ~name of an unknown user
        raise UserError(f"{place}: {path} cannot be read ({str(error).rstrip('.')})") from None
    try:
        yield path
    except OSError as error:
        raise UserError(f"{place}: {path} cannot be read ({error.strerror})") from None


def _library_backbone(network: Classifier) -> Backbone:
    """Build the backbone once more for the library's names, on the meta device, where it takes no memory."""
    source = model(network.name).source
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):
                return source.backbone(network.image_shape)
        except NotImplementedError:  # torchvision's RegNets compute their widths with tensors
            return source.backbone(network.image_shape)


def _torch_load(path: Path) -> Any:
    with warnings.catch_warnings():  # old pickles warn before they are refused
        warnings.simplefilter("ignore")
        return torch.load(path, map_location="cpu", weights_only=True)


def _no_state_dict(content: Any) -> str | None:
    """Return what a file holds instead of a state dict, or None if it holds one."""
    kind = type(content).__name__
    if not isinstance(content, dict):
        return kind
    for name, value in content.items():
        if not isinstance(name, str):
            return f"{kind} with the name {name!r:.40}: {type(name).__name__}"
        if not isinstance(value, Tensor):
            return f"{kind} with {name}: {type(value).__name__}"
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
