"""The FLOPs that an image needs, and those that a device can do. A multiply-add is 2 FLOPs; 1 TF is 1e12 FLOPs."""

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

PEAK_TFLOPS = {
    "H100 PCIe": {"fp32": 51.2, "tf32": 378.0, "bf16": 756.0, "fp16": 756.0},
    "H100": {"fp32": 66.9, "tf32": 494.7, "bf16": 989.4, "fp16": 989.4},
    "H200": {"fp32": 66.9, "tf32": 494.7, "bf16": 989.4, "fp16": 989.4},
    "A100": {"fp32": 19.5, "tf32": 156.0, "bf16": 312.0, "fp16": 312.0},
}
"""TF/s of dense products by NVIDIA's data sheets; the first key that is part of torch.cuda.get_device_name counts."""


def counted_flops(work: Callable[[], Any]) -> int:
    """Return the FLOPs of convolutions and matrix products while work() runs."""
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.convolution_backward: _backward}) as counter:
        work()
    return int(counter.get_total_flops())


def _backward(
    grad_out: list[int], images: list[int], weight: list[int], _bias: Any, _stride: Any, _padding: Any, _dilation: Any,
    transposed: bool, _output_padding: Any, _groups: int, wanted: list[bool], **_: Any,
) -> int:  # fmt: skip
    """Return the FLOPs of a convolution's backward pass; each gradient costs as much as the forward pass.

    torch's own count of the weight's gradient ignores the groups. A weight [C_out, C_in / groups, *kernel] is used
    once at every position of the output.
    """
    positions = prod((images if transposed else grad_out)[2:])
    return 2 * images[0] * positions * prod(weight) * sum(wanted[:2])


def peak_tflops(device: torch.device, precision: str, now: Callable[[torch.device], float]) -> float | None:
    """Return the TF/s of a GPU by its data sheet (None if unknown), or of a CPU, measured by now(device) in s."""
    if device.type == "cpu":
        return measured_cpu_tflops(lambda: now(device))
    table = next((known for name, known in PEAK_TFLOPS.items() if name in torch.cuda.get_device_name(device)), None)
    return table[precision] if table else None


def measured_cpu_tflops(clock: Callable[[], float], size: int = 1536, rounds: int = 20) -> float:
    """Return the TF/s of the fastest of some products of square float32 matrices, on the threads of this process."""
    one, other = torch.rand(size, size), torch.rand(size, size)
    seconds = []
    for _ in range(rounds):
        started = clock()
        torch.mm(one, other)
        seconds.append(clock() - started)
    return 2 * size**3 / min(seconds) / 1e12
