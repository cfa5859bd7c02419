"""Weights of networks: read from files, loaded from the libraries, named for a trial's identity."""

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
from kdtrain.models.source import Parts

SHOWN = 3
SETTLED_S = 1.0
"""A file that was written less long ago may be written again without another time of its change."""
WITHOUT_HEAD = "part: encoder leaves the head out"
TORCH_BEGINNINGS = (b"PK", b"\x80")
"""Of what torch.save writes: a zip archive, before PyTorch 1.6 a pickle. Any text may be read as some pickle."""


def read_state(path: str | Path, place: str) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or of one that torch.save wrote, read without running code from it.

    `place` is where the recipe names the file: recipe.teacher.file. Raises UserError with it.
    """
    with _readable(path, place) as path, path.open("rb") as file:
        pickled = path.suffix != ".safetensors"
        by_torch = file.read(2).startswith(TORCH_BEGINNINGS)
    try:
        content: Any = _torch_load(path) if pickled else load_file(path)
    # Of a text or a damaged file the unpickler makes whatever its bytes happen to say, so any error may come of it:
    # KeyError, IndexError, AttributeError. Nothing of ours runs in there that this could hide.
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
    stranger = _no_state_dict(content)
    if stranger is not None:
        raise UserError(f"{place}: {path} holds no state_dict (names and tensors), but {stranger}")
    # DistributedDataParallel puts this before every name
    return {name.removeprefix("module."): value for name, value in content.items()}


def load_network_weights(network: Classifier, config: Network, parts: Parts, place: str) -> None:
    """The weights that the config names, into the network. Raises UserError."""
    if config.weights == "imagenet":
        with at(place):
            state = with_own_names(model(config.model).source.imagenet(), parts)
        load_state(network, _encoder_only(state), f"{place}: imagenet", "encoder")
    elif isinstance(config.weights, WeightsFile):
        place = f"{place}.file"
        state = with_own_names(read_state(config.weights.file, place), parts)
        if config.weights.part == "encoder":
            state = _encoder_only(state)
        load_state(network, state, f"{place}: {config.weights.file}", config.weights.part, WITHOUT_HEAD)


def load_whole_network(network: Classifier, file: Path, place: str) -> None:
    """Every tensor of a network that was trained elsewhere: by us, or under its library's names. Raises UserError."""
    state = read_state(file, place)
    if not _has_own_names(state):
        state = with_own_names(state, _library_parts(network))
    load_state(network, state, f"{place}: {file}", "network")


def load_state(network: Classifier, state: dict[str, Tensor], what: str, part: str, without_head: str = "") -> None:
    """Every tensor of the part, no other, each of its shape; else a UserError that begins with `what`.

    without_head: what it ends with where only the head does not fit: how to leave that out.
    """
    own = {name: value for name, value in network.state_dict().items() if part == "network" or _of_encoder(name)}
    # files from before PyTorch 0.4.1 have no such counter; BatchNorm reads it only without a momentum
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
    """What the network starts from, for a trial's identity: the library's name of the weights, a file's SHA-256, or
    None for random ones. Raises UserError where there are none or the file cannot be read."""
    if network.weights is None:
        return None
    if isinstance(network.weights, WeightsFile):
        return content_digest(network.weights.file, f"{place}.weights.file")
    with at(f"{place}.weights"):
        return model(network.model).source.imagenet_name()


def content_digest(path: str | Path, place: str) -> str:
    """SHA-256 of a file, in hexadecimal digits. Raises UserError, beginning with `place`, where it cannot be read.

    A process reads a file once, as long as it is the same: a trial's identity is asked for several times.
    """
    with _readable(path, place) as path:
        about = path.stat()
        stamp = about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns
        settled = time.time() > about.st_ctime + SETTLED_S
        return _digest_once(path, stamp) if settled else _digest(path)


@lru_cache(maxsize=64)
def _digest_once(path: Path, stamp: tuple[int, ...]) -> str:
    return _digest(path)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def at(place: str) -> Iterator[None]:
    """Puts the place before what a library's weights lack."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{place}: {error}") from None


def with_own_names(state: dict[str, Tensor], parts: Parts) -> dict[str, Tensor]:
    """A file of ours as it is; a library's file with `encoder.` before its names and its classifier as our head."""
    if _has_own_names(state):
        return state
    renamed = {}
    for name, value in state.items():
        if name.startswith(parts.ignored):
            continue
        if parts.classifier and name.startswith(parts.classifier + "."):
            name = "head.1" + name.removeprefix(parts.classifier)
            value = value.flatten(1) if value.ndim == 4 else value  # BiT's classifier is a 1x1 convolution
        else:
            name = "encoder." + name
        renamed[name] = value
    return renamed


@contextmanager
def _readable(path: str | Path, place: str) -> Iterator[Path]:
    """The path with ~ as the home folder; within, what the system says of a file that cannot be read."""
    try:
        path = Path(path).expanduser()
    except RuntimeError as error:  # ~name of nobody
        raise UserError(f"{place}: {path} cannot be read ({str(error).rstrip('.')})") from None
    try:
        yield path
    except OSError as error:
        raise UserError(f"{place}: {path} cannot be read ({error.strerror})") from None


def _library_parts(network: Classifier) -> Parts:
    """Built once more, only for what the library calls its parts: on the meta device, where that takes no memory."""
    source = model(network.name).source
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):
                return source.parts(network.image_shape)
        except NotImplementedError:  # torchvision's RegNets compute their widths with tensors
            return source.parts(network.image_shape)


def _torch_load(path: Path) -> Any:
    with warnings.catch_warnings():  # of old pickles, on the way to refusing them
        warnings.simplefilter("ignore")
        return torch.load(path, map_location="cpu", weights_only=True)


def _no_state_dict(content: Any) -> str | None:
    """What a file holds instead of a state_dict; None where it holds one."""
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
    return all(name.startswith(("encoder.", "head.")) for name in state) and any(map(_of_encoder, state))


def _class_counts(own: dict[str, Tensor], state: dict[str, Tensor]) -> tuple[int, int] | None:
    """(K of the file, K of the network) where nothing else differs: the last layer is [K, features] and [K]."""
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


def _of_encoder(name: str) -> bool:
    return name.startswith("encoder.")


def _encoder_only(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if _of_encoder(name)}


def _only_head(*problems: list[str]) -> bool:
    return all(name.startswith("head.") for names in problems for name in names)


def _first(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
