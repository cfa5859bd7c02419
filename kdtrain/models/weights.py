"""Weights of networks: read from files, loaded from the libraries, named for a trial's identity."""

import hashlib
import pickle
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from kdtrain.errors import UserError
from kdtrain.models.classifier import Classifier
from kdtrain.models.config import Network, WeightsFile
from kdtrain.models.parts import Parts
from kdtrain.models.table import model

SHOWN = 3


def read_state(path: str | Path, place: str) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or of one that torch.save wrote, read without running code from it.

    `place` is where the recipe names the file: recipe.teacher.file. Raises UserError with it.
    """
    path = Path(path).expanduser()
    try:
        path.open("rb").close()  # for both readers, the system's own words where it cannot be opened
    except OSError as error:
        raise UserError(f"{place}: {path} cannot be read ({error.strerror})") from None
    try:
        content: Any = load_file(path) if path.suffix == ".safetensors" else _torch_load(path)
    except pickle.UnpicklingError as error:
        if "Unsupported operand" in str(error):
            raise UserError(f"{place}: {path} is no whole weights file (torch.save did not write it)") from None
        raise UserError(
            f"{place}: {path} holds more than tensors (pickled code is never run); save the network's state_dict()"
        ) from None
    except (SafetensorError, RuntimeError, OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"{place}: {path} is no whole weights file ({' '.join(str(error).split())[:120]})") from None
    for wrapper in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{place}: {path} holds no state_dict (names and tensors), but {type(content).__name__}")
    return dict(content)


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
        load_state(network, state, f"{place}: {config.weights.file}", config.weights.part)


def load_state(network: Classifier, state: dict[str, Tensor], what: str, part: str) -> None:
    """Every tensor of the part, no other, each of its shape; else a UserError that begins with `what`."""
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
    if causes:
        hint = (
            "; part: encoder leaves the head out"
            if part == "network" and _only_head(missing, unexpected, misfits)
            else ""
        )
        raise UserError(f"{what} does not fit {network.name}: {'; '.join(causes)}{hint}")
    network.load_state_dict(state, strict=False)


def weights_source(network: Network, place: str = "recipe.student") -> str | None:
    """What the network starts from, for a trial's identity: the library's name of the weights, a file's SHA-256, or
    None for random ones. Raises UserError where there are none or the file cannot be read."""
    if network.weights is None:
        return None
    if isinstance(network.weights, WeightsFile):
        path = Path(network.weights.file).expanduser()
        try:
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise UserError(f"{place}.weights.file: {path} cannot be read ({error.strerror})") from None
    with at(f"{place}.weights"):
        return model(network.model).source.imagenet_name()


@contextmanager
def at(place: str) -> Iterator[None]:
    """Puts the place before what a library's weights lack."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{place}: {error}") from None


def with_own_names(state: dict[str, Tensor], parts: Parts) -> dict[str, Tensor]:
    """A file of ours as it is; a library's file with `encoder.` before its names and its classifier as our head."""
    state = {name.removeprefix("module."): value for name, value in state.items()}
    if all(name.startswith(("encoder.", "head.")) for name in state) and any(map(_of_encoder, state)):
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


def _torch_load(path: Path) -> Any:
    with warnings.catch_warnings():  # of old pickles, on the way to refusing them
        warnings.simplefilter("ignore")
        return torch.load(path, map_location="cpu", weights_only=True)


def _of_encoder(name: str) -> bool:
    return name.startswith("encoder.")


def _encoder_only(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if _of_encoder(name)}


def _only_head(*problems: list[str]) -> bool:
    return all(name.startswith("head.") for names in problems for name in names)


def _first(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
