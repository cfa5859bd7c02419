"""Compare kdtrain's training with a plain well-written loop with the same settings, in the same process.

    python benchmarks/train_step.py                                     # all setups' pairs on the CPU, small images
    python benchmarks/train_step.py --setup 1 4 --channels-last both
    python benchmarks/train_step.py --device cuda --precision bf16 --compile

The rounds are interleaved and timed as a whole: on a CPU with one thread in CPU time of this process, so that other
work on the machine counts less; otherwise in wall time. It prints images/s (median, range), the ratios of the rounds
and of the fastest ones, the shares of kdtrain's time (measured apart), and the FLOPs that an image needs
(those of a plan; none for a frozen student) as a share of the device's peak at the measured rate.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from pairs import PAIRS, ByHand, Ours, Pair, made_up
from phases import shares

from kdtrain.config.recipe import Recipe
from kdtrain.data.base import Dataset
from kdtrain.study.step_cost import image_flops
from kdtrain.training.precision import backend_settings

LAYOUTS_ASKED: dict[str, list[bool | None]] = {"default": [None], "on": [True], "off": [False], "both": [False, None]}
"""channels_last of teacher and student; None is each network's own default, which is on except for BiT."""
HOPPER = {"fp32": 66.9, "tf32": 494.7, "bf16": 989.4, "fp16": 989.4}
PEAK_TFLOPS = {
    "H100 PCIe": {"fp32": 51.2, "tf32": 378.0, "bf16": 756.0, "fp16": 756.0}, "H100": HOPPER, "H200": HOPPER,
    "A100": {"fp32": 19.5, "tf32": 156.0, "bf16": 312.0, "fp16": 312.0},
}  # fmt: skip
"""TF/s of dense products by NVIDIA's data sheets; the first key that is part of torch.cuda.get_device_name counts."""


def main(arguments: list[str] | None = None) -> None:
    chosen = parser().parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    device = torch.device(chosen.device)
    peak = chosen.peak_tflops or peak_tflops(device, chosen.precision)
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {chosen.threads} thread(s)"
    print(f"{machine}, torch {torch.__version__}, {chosen.precision}{', compiled' if chosen.compile else ''}")
    with backend_settings(chosen.precision, device):
        for pair in PAIRS:
            if pair.setup in chosen.setup and (chosen.large or not pair.large):
                measure(pair, chosen, device, peak)


def parser() -> argparse.ArgumentParser:
    own = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    own.add_argument("--setup", type=int, nargs="+", default=[1, 2, 3, 4, 5], choices=range(1, 6), metavar="N")
    own.add_argument("--rounds", type=int, default=5, help="epochs of each loop (one more is the warm-up)")
    own.add_argument("--batches", type=int, help="batches of an epoch (default: the pair's own)")
    own.add_argument("--batch-size", type=int, help="default: the recipe's own")
    own.add_argument("--px", type=int, help="default: 64 on a CPU (MNIST: 32), the setup's own size on a GPU")
    own.add_argument("--device", default="cpu")
    own.add_argument("--threads", type=int, default=1)
    own.add_argument("--precision", default="fp32", choices=("fp32", "tf32", "bf16", "fp16"))
    own.add_argument("--compile", action="store_true", help="teacher and student, in both loops")
    own.add_argument("--channels-last", default="default", choices=list(LAYOUTS_ASKED), help="both: off and default")
    own.add_argument("--large", action="store_true", help="also setup 5 with its own teacher, BiT 101x3")
    own.add_argument("--peak-tflops", type=float, help="peak of the device (default: known, or measured on a CPU)")
    return own


def measure(pair: Pair, chosen: argparse.Namespace, device: torch.device, peak: float | None) -> None:
    """Measure one pair and print the result."""
    px = chosen.px or (pair.small_px if device.type == "cpu" else pair.own_px)
    loops: dict[str, Ours | ByHand] = {}
    for layout in LAYOUTS_ASKED[chosen.channels_last]:
        ours = Ours(*prepared(pair, chosen, px, layout), device)
        name = {None: "", True: ", channels_last", False: ", contiguous"}[layout]
        loops |= {f"kdtrain{name}": ours, f"plain loop{name}": ByHand(ours)}
    count, size = len(ours.state.data.train), ours.state.recipe.batch_size
    print(f"\nSetup {pair.setup}: {pair.title}; {px} px, batch {size}, {count} images an epoch, {chosen.rounds} rounds")
    seconds = interleaved({name: loop.epoch for name, loop in loops.items()}, chosen.rounds, device)
    for name, taken in seconds.items():
        rates = [count / each for each in taken]
        print(f"  {name:<26} {statistics.median(rates):>10,.1f} images/s ({min(rates):,.1f} to {max(rates):,.1f})")
    names = list(loops)
    compared = [(names[i], names[i + 1]) for i in range(0, len(names), 2)]
    if len(names) == 4:
        compared += [(names[2], names[0]), (names[3], names[1]), (names[2], names[1])]
    for one, other in compared:
        ratios = sorted(b / a for a, b in zip(seconds[one], seconds[other], strict=True))
        shown = f"{statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})"
        print(f"  {one} / {other}: {shown}, fastest {min(seconds[other]) / min(seconds[one]):.3f}")
    for ours in (loop for loop in loops.values() if isinstance(loop, Ours)):
        parts = ", ".join(
            f"{phase} {part:.1%}" for phase, part in shares(ours.state, ours.epoch, lambda: now(device)).items()
        )
        print(f"  time of kdtrain: {parts}")
    if peak is not None and ours.state.recipe.student.freeze == "none":  # a frozen encoder saves a part of the step
        flops = sum(image_flops(ours.state.recipe, pair.classes))
        rate = count / min(statistics.median(taken) for name, taken in seconds.items() if name.startswith("kdtrain"))
        share = (achieved := rate * flops / 1e12) / peak
        print(f"  floor: {flops / 1e9:.4g} GF an image; achieved {achieved:.4g} of {peak:.4g} TF/s: {share:.1%}")


def prepared(pair: Pair, chosen: argparse.Namespace, px: int, channels_last: bool | None) -> tuple[Recipe, Dataset]:
    """Return the pair's recipe as chosen, and its images."""
    changes = [f"precision={chosen.precision}"]
    for network in ("student", "teacher"):
        changes += [f"{network}.compile=true"] if chosen.compile else []
        changes += [f"{network}.channels_last={str(channels_last).lower()}"] if channels_last is not None else []
    changes += [f"batch_size={chosen.batch_size}"] if chosen.batch_size else []
    recipe = pair.resolved(px, changes)
    return recipe, made_up(pair, px, (chosen.batches or pair.batches) * recipe.batch_size)


def interleaved(epochs: dict[str, Callable[[], float]], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Return the seconds of each epoch, by name; every other round runs backwards, and the first one is a warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in epochs}
    for number in range(rounds + 1):
        for name in list(epochs)[:: 1 if number % 2 else -1]:
            started = now(device)
            epochs[name]()
            if number:
                seconds[name].append(now(device) - started)
    return seconds


def now(device: torch.device) -> float:
    """Return the time in s: CPU time of this process with one CPU thread, else wall time."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif torch.get_num_threads() == 1:
        return time.process_time()
    return time.perf_counter()


def peak_tflops(device: torch.device, precision: str) -> float | None:
    """Return the TF/s of a GPU by its data sheet (None if unknown), or of a CPU's fastest product of matrices."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        return next((table[precision] for known, table in PEAK_TFLOPS.items() if known in name), None)
    one, other, seconds = torch.rand(1536, 1536), torch.rand(1536, 1536), []
    for _ in range(20):
        started = now(device)
        torch.mm(one, other)
        seconds.append(now(device) - started)
    return 2 * 1536**3 / min(seconds) / 1e12


if __name__ == "__main__":
    main()
