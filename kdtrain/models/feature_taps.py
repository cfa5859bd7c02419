"""Stages: modules of a network whose outputs are features, named by their stride: "4", "8", "16", "32".

If several maps have a stride, the stage is the last one.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

STRIDES = (4, 8, 16, 32)
# Two sizes tell a stride from a pooling to a fixed size (VGG: 7x7). They are large so that borders count little.
PROBES_PX = (512, 640)
Size = tuple[int, int]


@dataclass(frozen=True)
class ModuleCall:
    """One call of a module, with the strides of its input and its output; None: not a map, or no power of two."""

    name: str
    input_stride: int | None
    output_stride: int | None


def measure_taps(encoder: nn.Module, channels: int, own_size: Size) -> dict[str, str]:
    """Return {stage: module path} of any network, from dry forwards at two image sizes.

    A module that halves its input counts as one step: maps inside it, such as a bottleneck's expansion before its
    stride, are no stages. `own_size` is the (H, W) of a network that takes this size only.
    """
    try:
        first, second = (record_calls(encoder, channels, (px, px)) for px in PROBES_PX)
        calls = [one for one, other in zip(first, second, strict=True) if one == other]
    except (RuntimeError, AssertionError, ValueError):
        calls = record_calls(encoder, channels, own_size)
    last = {str(stride): _last_at(calls, stride) for stride in STRIDES}
    return {stage: name for stage, name in last.items() if name is not None}


def _last_at(calls: list[ModuleCall], stride: int) -> str | None:
    steps = tuple(call.name + "." for call in calls if call.input_stride == stride and call.output_stride == 2 * stride)
    at = [call.name for call in calls if call.output_stride == stride and not call.name.startswith(steps)]
    return at[-1] if at else None


def record_calls(encoder: nn.Module, channels: int, size: Size) -> list[ModuleCall]:
    """Return the calls of all modules in a dry forward at this (H, W), in the order in which they return."""
    calls = []

    def note(name: str, inputs: Any, output: Any) -> None:
        calls.append(ModuleCall(name, stride_of(inputs[0] if inputs else None, size), stride_of(output, size)))

    with ForwardHooks() as hooks:
        for name, module in encoder.named_modules():
            if name:
                hooks.add(module, lambda _, inputs, output, name=name: note(name, inputs, output))
        dry_forward(encoder, (channels, *size))
    return calls


def stride_of(value: Any, size: Size) -> int | None:
    """Return the power of two by which maps [N, C, H, W] are smaller than images of `size` = (H, W), or None.

    Unpadded convolutions make maps slightly smaller than that.
    """
    if not isinstance(value, Tensor) or value.ndim != 4:
        return None
    high, wide = (math.log2(whole / part) for whole, part in zip(size, value.shape[2:], strict=True))
    nearest = round(high)
    return 2**nearest if -0.1 <= min(high, wide) - nearest <= max(high, wide) - nearest <= 0.25 else None


class ForwardHooks:
    """A context manager that removes its forward hooks at the end of the block."""

    def __enter__(self) -> "ForwardHooks":
        self.handles: list[Any] = []
        return self

    def add(self, module: nn.Module, hook: Any) -> None:
        """Register hook(module, inputs, output)."""
        self.handles.append(module.register_forward_hook(hook))

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()


def dry_forward(network: nn.Module, shape: tuple[int, ...]) -> Tensor:
    """Return the output for one image of this shape in evaluation mode, whose shape is wanted rather than its values.

    It runs on the meta device, where nothing is computed. A network that reads values (`.item()`) runs on its own
    device. No buffer changes.
    """
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    with evaluation_mode(network), torch.no_grad():
        output: Tensor
        try:
            on_meta = {name: value.to("meta") for name, value in tensors.items()}
            output = functional_call(network, on_meta, (torch.zeros(1, *shape, device="meta"),))
        except RuntimeError:
            device = next(iter(tensors.values())).device
            output = network(torch.zeros(1, *shape, device=device))
    return output


@contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Set evaluation mode in the block and restore the mode of every module after it."""
    before = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, mode in before:
            module.training = mode
