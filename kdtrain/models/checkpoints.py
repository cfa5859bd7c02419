"""Files of weights, read without running code from them, and the sets of weights that they hold.

torch's restricted unpickler makes tensors, numbers, texts and plain containers. Of the few other classes that training
programs save beside their weights nothing is made: an empty object stands for each. Any other class is refused.
"""

import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from kdtrain.errors import UserError
from kdtrain.storage.folder import user_path

TORCH_MAGIC = (b"PK\x03\x04", b"\x80")
"""First bytes of a file of torch.save: a zip archive, or a pickle before PyTorch 1.6. The unpickler reads any text."""
SAVE_WEIGHTS = "save the weights alone: torch.save(model.state_dict(), FILE)"
DEPTH = 4
"""Dicts are searched for weights down to this depth: a pickled dict may hold itself."""
WRAPPERS = re.compile(r"(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""What torch.compile, FSDP and activation checkpointing put into the names of weights, at any depth."""
AVERAGED = {"ema", "swa", "avg", "average", "averaged"}


class _Skipped:
    """Stands for an object of a file that is no weights, such as a setting."""

    def __init__(self, *arguments: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def _empty_dict(*arguments: object) -> dict[Any, Any]:
    return {}


PATHS = [f"{kind}{system}Path" for kind in ("", "Pure") for system in ("Posix", "Windows")]
SKIPPED = (
    "argparse.Namespace",
    *(f"{module}.{name}" for module in ("pathlib", "pathlib._local") for name in PATHS),
    *(f"datetime.{name}" for name in ("date", "datetime", "timedelta", "timezone")),
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    "numpy.dtype",
    "numpy.ndarray",
    *(f"builtins.{name}" for name in ("dict", "float", "int", "list", "set", "str")),  # the factory of a defaultdict
)
"""Classes and functions of other programs' checkpoints of which nothing is made: settings, paths, times, numbers."""
DICTS = (
    "lightning.fabric.utilities.data.AttributeDict",
    "lightning.pytorch.utilities.parsing.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "pytorch_lightning.utilities.parsing.AttributeDict",
)
"""Classes that are read as plain dicts."""


def read_weights(path: str | Path, place: str) -> dict[str, dict[str, Tensor]]:
    """Return every set of weights of a .safetensors file or of a file of torch.save, without running code from it.

    A set is a dict of names and tensors. Its key is its dotted path in the file, "" for the whole file. Averaged sets
    (`state_dict_ema`) come last, the others in the file's order.

    Raises:
        UserError: The file cannot be read or has no weights. The text begins with `place`, the file's key in the
            recipe, and names the remedy.
    """
    with readable(path, place) as path, path.open("rb") as file:
        start = file.read(9)
    try:
        if start[8:9] == b"{":  # after the length of its header
            content = load_file(path)
        elif start.startswith(TORCH_MAGIC):
            content = _torch_load(path)
        else:
            raise ValueError("neither safetensors nor torch.save wrote it")
    # On a damaged file the unpickler may raise any error: KeyError, IndexError, AttributeError. No code of this
    # package runs in there, so no defect is hidden.
    except Exception as error:
        raise UserError(f"{place}: {path} {_refusal(path, error)}") from None
    found = {key: _without_wrappers(state) for key, state in _state_dicts(content, "", DEPTH)}
    if not found:
        raise UserError(
            f"{place}: {path} holds no state_dict (names and tensors), but {_found(content)}; {SAVE_WEIGHTS}"
        )
    return dict(sorted(found.items(), key=lambda item: is_averaged(item[0])))


def is_averaged(key: str) -> bool:
    """Return True if a key names averaged weights, such as `model_ema`."""
    return not AVERAGED.isdisjoint(re.split(r"[._]", key.lower()))


@contextmanager
def readable(path: str | Path, place: str) -> Iterator[Path]:
    """Give the path with ~ expanded, and turn an OSError of the block into a UserError."""
    if "://" in str(path):
        raise UserError(f"{place}: {path} is a URL; copy the file to this machine and name its path")
    path = user_path(path, place)
    try:
        if path.exists() and not path.is_file() and not path.is_dir():  # to open a pipe would wait for its writer
            raise UserError(f"{place}: {path} is no regular file; name a file of weights")
        yield path
    except IsADirectoryError:
        inside = [file.name for pattern in ("*.safetensors", "*.bin", "*.pt*", "*.ckpt") for file in path.glob(pattern)]
        hint = f", such as {path / min(inside)}" if inside else ""
        raise UserError(f"{place}: {path} is a folder; name a file of weights in it{hint}") from None
    except OSError as error:
        raise UserError(f"{place}: {path} cannot be read ({error.strerror})") from None


def _torch_load(path: Path) -> Any:
    skipped = [(_Skipped, name) for name in SKIPPED]
    dicts = [(dict, name) for name in DICTS]
    allowed: list[Any] = [*skipped, *dicts, (_empty_dict, "collections.defaultdict")]
    with warnings.catch_warnings(), torch.serialization.safe_globals(allowed):
        warnings.simplefilter("ignore")  # old pickles warn before they are refused
        # mapped, what is not taken is not read, such as an optimizer's state
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))


def _refusal(path: Path, error: Exception) -> str:
    """Return why a file is refused, and the remedy."""
    text = " ".join(str(error).split())
    refused = re.search(r"GLOBAL ([\w.]+)", text)
    if _is_torchscript(path):
        script = "torch.save(torch.jit.load(FILE).state_dict(), NEW_FILE)"
        return f"is a TorchScript archive, which is code; save its weights: {script}"
    if "DTensor" in text:
        return "holds the shards of a distributed model; save its full state dict, of ordinary tensors"
    if refused is not None and _holds_modules(path):
        whole = "torch.save(torch.load(FILE, weights_only=False).state_dict(), NEW_FILE)"
        return f"holds a whole network ({refused[1]}), and pickled code is never run; save its weights alone: {whole}"
    if refused is not None:
        return f"holds more than tensors ({refused[1]}), and pickled code is never run; {SAVE_WEIGHTS}"
    if "Unsupported operand" in text:
        return f"is pickled by another protocol than that of torch.save; {SAVE_WEIGHTS}"
    if isinstance(error, pickle.UnpicklingError):
        return f"holds more than tensors, and pickled code is never run; {SAVE_WEIGHTS}"
    kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
    return f"is no whole weights file ({kind}{text[:120]}); {SAVE_WEIGHTS}"


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _holds_modules(path: Path) -> bool:
    """Return True if a refused file of torch.save holds layers, not only their weights."""
    if not zipfile.is_zipfile(path):
        return False
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError):
        return False
    return any(name.startswith("torch.nn.modules.") for name in names)


def _state_dicts(content: Any, key: str, depth: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield every dict of names and tensors with its dotted path."""
    if not isinstance(content, dict) or not content or depth < 0:
        return
    if all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()):
        yield key, content
        return
    for name, value in content.items():
        if isinstance(name, str):
            yield from _state_dicts(value, f"{key}.{name}" if key else name, depth - 1)


def _without_wrappers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {WRAPPERS.sub("", name): value for name, value in state.items()}


def _found(content: Any) -> str:
    """Return what a file without a state dict holds instead."""
    kind = type(content).__name__
    if not isinstance(content, dict) or not content:
        return f"an empty {kind}" if isinstance(content, dict) else kind
    if any(isinstance(value, Tensor) and value.is_quantized for value in content.values()):
        return "the weights of a quantised network, which cannot be trained; take those before quantisation"
    for name, value in content.items():
        if not isinstance(name, str):
            return f"{kind} with the name {name!r:.40}: {type(name).__name__}"
        if not isinstance(value, Tensor):
            other = "an object that is no tensor" if isinstance(value, _Skipped) else type(value).__name__
            return f"{kind} with {name}: {other}"
    raise AssertionError("it is a state dict")
