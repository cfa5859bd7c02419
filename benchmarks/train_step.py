"""Compare kdtrain's training with a plain well-written loop with the same settings, in the same process.

    python benchmarks/train_step.py                                     # all setups' pairs on the CPU, small images
    python benchmarks/train_step.py --setup 1 4 --channels-last both
    python benchmarks/train_step.py --device cuda --precision bf16 --compile

The rounds are interleaved and timed as a whole: on a CPU with one thread in CPU time of this process, so that other
work on the machine counts less; otherwise in wall time. It prints images/s (median, range), the ratios of the rounds
and of the fastest ones, the shares of kdtrain's time (measured apart), and the FLOPs that an image needs
(teacher forward, student forward and backward) as a share of the device's peak at the measured rate.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from unittest.mock import patch

import torch
from flops import counted_flops, peak_tflops
from pairs import PAIRS, ByHand, Ours, Pair, beginning, made_up
from phases import shares

from kdtrain.config.recipe import Recipe
from kdtrain.data.base import Dataset
from kdtrain.data.registry import data_folder, load
from kdtrain.methods.base import weighted_sum
from kdtrain.training.loop import load_batch
from kdtrain.training.precision import backend_settings

LAYOUTS_ASKED: dict[str, list[bool | None]] = {"default": [None], "on": [True], "off": [False], "both": [False, None]}
"""channels_last of teacher and student; None is each network's own default, which is on except for BiT."""


def main(arguments: list[str] | None = None) -> None:
    chosen = parser().parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    device = torch.device(chosen.device)
    peak = chosen.peak_tflops or peak_tflops(device, chosen.precision, now)
    print(f"{machine(device)}, torch {torch.__version__}, {chosen.precision}{', compiled' if chosen.compile else ''}")
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
    own.add_argument("--data", metavar="DIR", help="the setups' real images (default: made-up ones in memory)")
    own.add_argument("--peak-tflops", type=float, help="peak of the device (default: known, or measured on a CPU)")
    return own


def measure(pair: Pair, chosen: argparse.Namespace, device: torch.device, peak: float | None) -> None:
    """Measure one pair and print the result."""
    layouts = LAYOUTS_ASKED[chosen.channels_last]
    px = chosen.px or (pair.small_px if device.type == "cpu" else pair.own_px)
    loops: dict[str, Ours | ByHand] = {}
    for layout in layouts:
        ours = Ours(*prepared(pair, chosen, px, layout), device)
        name = {None: "", True: ", channels_last", False: ", contiguous"}[layout]
        loops |= {f"kdtrain{name}": ours, f"plain loop{name}": ByHand(ours)}
    count, size = len(ours.state.data.train), ours.state.recipe.batch_size
    print(f"\nSetup {pair.setup}: {pair.title}; {px} px, batch {size}, {count} images an epoch, {chosen.rounds} rounds")
    flops = flops_per_image(ours)
    seconds = interleaved({name: loop.epoch for name, loop in loops.items()}, chosen.rounds, device)
    for name, taken in seconds.items():
        rates = [count / each for each in taken]
        print(f"  {name:<26} {statistics.median(rates):>10,.1f} images/s ({min(rates):,.1f} to {max(rates):,.1f})")
    names = list(loops)
    compared = [(names[i], names[i + 1]) for i in range(0, len(names), 2)]
    if len(layouts) == 2:
        compared += [(names[2], names[0]), (names[3], names[1]), (names[2], names[1])]
    for one, other in compared:
        ratios = [b / a for a, b in zip(seconds[one], seconds[other], strict=True)]
        low, high = min(ratios), max(ratios)
        fastest = min(seconds[other]) / min(seconds[one])
        print(f"  {one} / {other}: {statistics.median(ratios):.3f} ({low:.3f} to {high:.3f}), fastest {fastest:.3f}")
    for ours in (loop for loop in loops.values() if isinstance(loop, Ours)):
        parts = ", ".join(f"{phase} {part:.1%}" for phase, part in shares(ours.state, ours.epoch).items())
        print(f"  time of kdtrain: {parts}")
    if peak is not None:
        rate = count / min(statistics.median(taken) for name, taken in seconds.items() if name.startswith("kdtrain"))
        achieved = rate * flops / 1e12
        print(
            f"  floor: {flops / 1e9:.4g} GF an image; achieved {achieved:.4g} of {peak:.4g} TF/s: {achieved / peak:.1%}"
        )


def prepared(pair: Pair, chosen: argparse.Namespace, px: int, channels_last: bool | None) -> tuple[Recipe, Dataset]:
    """Return the pair's recipe as chosen, and its images."""
    changes = [f"precision={chosen.precision}"]
    for network in ("student", "teacher"):
        changes += [f"{network}.compile=true"] if chosen.compile else []
        changes += [f"{network}.channels_last={str(channels_last).lower()}"] if channels_last is not None else []
    changes += [f"batch_size={chosen.batch_size}"] if chosen.batch_size else []
    recipe = pair.resolved(px, changes)
    images = (chosen.batches or pair.batches) * recipe.batch_size
    if chosen.data:
        return recipe, beginning(load(recipe.data, data_folder(chosen.data)), images)
    return recipe, made_up(pair, px, images)


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


def flops_per_image(ours: Ours) -> float:
    """Return the FLOPs that an image needs: teacher forward, student forward and backward, the method's layers."""
    state, few = ours.state, torch.arange(8)
    images, batch = load_batch(state, few, 0)

    def step() -> None:
        assert state.teacher is not None
        weighted_sum(state.distiller(images, state.teacher(images), batch)).backward()

    state.distiller.train()
    with patch.object(state.distiller.student, "compiled", False), patch.object(ours.network, "compiled", False):
        counted = counted_flops(step)
    state.distiller.zero_grad(set_to_none=True)
    return counted / len(few)


def machine(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} thread(s)"


if __name__ == "__main__":
    main()
