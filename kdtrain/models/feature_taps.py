"""Stages: tap points of a network, named by stride: "4", "8", "16", "32"; the last map at a stride counts."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

STRIDES = (4, 8, 16, 32)
PROBES_PX = (512, 640)  # two sizes: a pooling to a fixed size (VGG: 7x7) has no stride; large: borders count little
Size = tuple[int, int]


@dataclass(frozen=True)
class Call:
    """A module's call: by how much the maps that went in and came out are smaller than the images; None: no stride."""

    name: str
    entered: int | None
    left: int | None


def measured_taps(encoder: nn.Module, channels: int, own_size: Size) -> dict[str, str]:
    """{stage: module} for a network of which nothing is known, from dry forwards at two sizes.

    A module that halves its input is one step: the maps inside it (a bottleneck's expansion, before its stride) are no
    stage. Networks that take one size only are measured at it.
    """
    try:
        first, second = (dry_calls(encoder, channels, (px, px)) for px in PROBES_PX)
        calls = [one for one, other in zip(first, second, strict=True) if one == other]
    except (RuntimeError, AssertionError, ValueError):
        calls = dry_calls(encoder, channels, own_size)
    last = {str(stride): _last_at(calls, stride) for stride in STRIDES}
    return {stage: name for stage, name in last.items() if name is not None}


def _last_at(calls: list[Call], stride: int) -> str | None:
    steps = tuple(call.name + "." for call in calls if call.entered == stride and call.left == 2 * stride)
    at = [call.name for call in calls if call.left == stride and not call.name.startswith(steps)]
    return at[-1] if at else None


def dry_calls(encoder: nn.Module, channels: int, size: Size) -> list[Call]:
    """Every module's calls, in the order in which they end."""
    calls = []

    def note(name: str, inputs: Any, output: Any) -> None:
        calls.append(Call(name, stride_of(inputs[0] if inputs else None, size), stride_of(output, size)))

    with ExitHooks() as hooks:
        for name, module in encoder.named_modules():
            if name:
                hooks.add(module, lambda _, inputs, output, name=name: note(name, inputs, output))
        dry_forward(encoder, (channels, *size))
    return calls


def stride_of(value: Any, size: Size) -> int | None:
    """The power of two by which maps [N, C, H, W] are smaller than images of that size. Unpadded convolutions make
    them a little smaller still."""
    if not isinstance(value, Tensor) or value.ndim != 4:
        return None
    high, wide = (math.log2(whole / part) for whole, part in zip(size, value.shape[2:], strict=True))
    nearest = round(high)
    return 2**nearest if -0.1 <= min(high, wide) - nearest <= max(high, wide) - nearest <= 0.25 else None


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
    """The output for one image, for its shape. On the meta device, where nothing is computed; a network that reads
    values (`.item()`) runs for real. No buffer moves."""
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    with evaluating(network), torch.no_grad():
        output: Tensor
        try:
            on_meta = {name: value.to("meta") for name, value in tensors.items()}
            output = functional_call(network, on_meta, (torch.zeros(1, *shape, device="meta"),))
        except RuntimeError:
            device = next(iter(tensors.values())).device
            output = network(torch.zeros(1, *shape, device=device))
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
