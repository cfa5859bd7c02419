"""Run small versions of the fourteen sweeps on real images: `python benchmarks/all_sweeps.py --results small`.

Each is its sweep file with `--set` alone: 2 epochs, 2 confirming seeds, few images of each class, 32 px for CIFAR-10
and 64 px for the networks of 224 px, random weights (frozen ones allowed, because nothing is downloaded). The results
mean nothing; they show that every sweep file runs to its report. A second start skips the sweeps that have finished.
"""

import argparse
import shlex
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent

SHORT = (
    "recipe.epochs=2", "study.trials=4", "study.sampler.startup_trials=2",
    "study.select={candidates: 2}",
    "study.confirm={seeds: 2}",
)  # fmt: skip
PRUNED = ("study.pruner={name: asha, min_epochs: 1, reduction: 2}",)
SMALL = ("recipe.data.resolution=64", "recipe.batch_size=16")


def random_weights(model: str, freeze: str, more: str = "") -> str:
    """Return a choice between a trainable network and one with a frozen encoder, both with random weights."""
    network = f"model: {model}, weights: null{more}"
    return f"{{choice: [{{{network}, freeze: {freeze}, allow_random_frozen: true}}, {{{network}, freeze: none}}]}}"


ADAM = "optimizer: {name: adam, lr: 3.0e-4}, lr_schedule: {name: exponential, factor: 0.95}"
CIFAR = (
    *SHORT, *PRUNED, "recipe.data.resolution=32", "recipe.data.limit_per_class=20", "recipe.batch_size=8",
    f"recipe.teacher={random_weights('resnet50', 'encoder_but_norm', f', head: hidden, seed: 7, {ADAM}')}",
    f"recipe.student={random_weights('resnet18', 'encoder_but_norm', ', head: hidden')}",
)  # fmt: skip
CUB = (
    *SHORT, *PRUNED, *SMALL, "recipe.data.limit_per_class=3", "recipe.lr_schedule.warmup_epochs=1",
    "recipe.teacher.weights=null",
    f"recipe.student={random_weights('mobilenetv2', 'encoder_but_norm', ', dropout: 0.2')}",
)  # fmt: skip

HINTON = (*SHORT, *PRUNED, "recipe.teacher.epochs=2", "recipe.data.limit_per_class=100")

SWEEPS: dict[str, tuple[str, ...]] = {
    "cifar10_kd": CIFAR,
    "cifar10_rkd": CIFAR,
    "cifar10_discriminator": CIFAR,
    "hymenoptera_mse": (
        *SHORT, *SMALL, "recipe.data.limit_per_class=40",
        f"recipe.teacher={random_weights('resnet50', 'encoder', ', optimizer: {name: sgd, lr: 0.001, momentum: 0.9}')}",
        f"recipe.student={random_weights('resnet18', 'encoder')}",
    ),
    "mnist_kd": (*SHORT, *PRUNED, "recipe.teacher.epochs=2", "recipe.data.limit_per_class=100"),
    "mnist_hinton": HINTON,
    "mnist_hinton_no3": HINTON,
    "cub_softtarget": CUB,
    "cub_mgd": CUB,
    "cub_at": CUB,
    "cub_sp": CUB,
    "cub_self": (
        *CUB,
        "recipe.student="
        "{model: {choice: [mobilenetv2, resnet50, ghostnet]}, weights: null, dropout: 0.2, freeze: none}",
    ),
    "cub_tricks": (*CUB, "study.trials=8"),
    "flowers_funmatch": (
        *SHORT, *SMALL, "recipe.data.limit_per_class=2", "recipe.teacher.model=bit_resnet50x1",
        "recipe.teacher.weights=null", "recipe.teacher.epochs=2",
        "recipe.student={choice: [{model: resnet50v2, weights: null}, {model: bit_resnet50x1, weights: null}]}",
    ),
}  # fmt: skip
"""The `--set` arguments of each sweep file; the later of two equal keys counts."""


def command(name: str, results: str) -> list[str]:
    """Return the command line that runs a small sweep."""
    settings = {setting.partition("=")[0]: setting for setting in SWEEPS[name]}
    words = [word for setting in settings.values() for word in ("--set", setting)]
    return [sys.executable, "run_sweep.py", f"sweeps/{name}.yaml", "--results", results, *words]


def main() -> int:
    parser = argparse.ArgumentParser(description="Run small versions of the fourteen sweeps, one after another.")
    parser.add_argument("--results", default="results/small", help="folder of the results (default: results/small)")
    parser.add_argument(
        "--only", nargs="+", choices=list(SWEEPS), default=list(SWEEPS), help="names of some sweeps (default: all)"
    )
    parser.add_argument("--check", action="store_true", help="only validate each sweep with its settings")
    arguments = parser.parse_args()
    results = str(Path(arguments.results).absolute())
    commands = {name: command(name, results) + (["--check"] if arguments.check else []) for name in arguments.only}
    if not arguments.check:
        commands["the overview"] = [sys.executable, "-m", "analysis", results]
    failed = []
    for name, words in commands.items():
        print(f"$ {shlex.join(words)}", flush=True)
        started = time.perf_counter()
        code = subprocess.run(words, cwd=ROOT, check=False).returncode
        failed += [name] if code else []
        print(f"== {name}: {time.perf_counter() - started:.0f} s, exit code {code}\n", flush=True)
    print(f"failed: {', '.join(failed) or 'none'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
