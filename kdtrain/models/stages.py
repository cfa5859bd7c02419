"""Stages: tap points of a network, named by stride: "4", "8", "16", "32"; the last map at a stride counts."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

STRIDES = (4, 8, 16, 32)
PROBES_PX = (224, 256)  # two sizes: a pooling to a fixed size (VGG: 7x7) has no stride


@dataclass(frozen=True)
class Seen:
    """A module's call: sides (H, W) of the maps that went in and came out; None where it was no map."""

    name: str
    entered: tuple[int, int] | None
    left: tuple[int, int] | None


def measured_taps(encoder: nn.Module, channels: int, own_size: tuple[int, int]) -> dict[str, str]:
    """{stage: module} for a network of which nothing is known, from dry forwards at two sizes.

    A module that halves its input is one step: the maps inside it (a bottleneck's expansion, before its stride) are no
    stage. Networks that take one size only are measured at it.
    """
    try:
        sizes = [(px, px) for px in PROBES_PX]
        passes = [dry_calls(encoder, (channels, *size)) for size in sizes]
    except (RuntimeError, AssertionError, ValueError):
        sizes = [own_size]
        passes = [dry_calls(encoder, (channels, *own_size))]
    taps = {}
    for stride in STRIDES:
        names = [_last_at(calls, size, stride) for calls, size in zip(passes, sizes, strict=True)]
        if names[0] is not None and len(set(names)) == 1:
            taps[str(stride)] = names[0]
    return taps


def _last_at(calls: list[Seen], size: tuple[int, int], stride: int) -> str | None:
    here, below = _sides(size, stride), _sides(size, 2 * stride)
    steps = tuple(call.name + "." for call in calls if call.entered == here and call.left == below)
    at = [call.name for call in calls if call.left == here and not call.name.startswith(steps)]
    return at[-1] if at else None


def _sides(size: tuple[int, int], stride: int) -> tuple[int, int]:
    return -(-size[0] // stride), -(-size[1] // stride)


def dry_calls(encoder: nn.Module, shape: tuple[int, int, int]) -> list[Seen]:
    """Every module's calls, in the order in which they end."""
    calls = []

    def note(name: str, inputs: Any, output: Any) -> None:
        calls.append(Seen(name, _map_sides(inputs[0] if inputs else None), _map_sides(output)))

    with ExitHooks() as hooks:
        for name, module in encoder.named_modules():
            if name:
                hooks.add(module, lambda _, inputs, output, name=name: note(name, inputs, output))
        dry_forward(encoder, shape)
    return calls


def _map_sides(value: Any) -> tuple[int, int] | None:
    return (value.shape[2], value.shape[3]) if isinstance(value, Tensor) and value.ndim == 4 else None


class ExitHooks:
    """Forward hooks that go when the block ends."""

    def __enter__(self) -> "ExitHooks":
        self.handles: list[Any] = []
        return self

    def add(self, module: nn.Module, hook: Any) -> None:
        self.handles.append(module.register_forward_hook(hook))

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()


def dry_forward(network: nn.Module, shape: tuple[int, ...]) -> Tensor:
    """The output for one image, as shapes only: on the meta device nothing is computed, and no buffer moves."""
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    with evaluating(network), torch.no_grad():
        on_meta = {name: value.to("meta") for name, value in tensors.items()}
        output: Tensor = functional_call(network, on_meta, (torch.zeros(1, *shape, device="meta"),))
    return output


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode within; every module's own mode afterwards."""
    before = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, mode in before:
            module.training = mode
