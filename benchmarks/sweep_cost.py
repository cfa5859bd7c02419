"""What a sweep of 16 trials costs: kdtrain against (a) the obvious Ray Tune script and (b) the floor.

`python benchmarks/sweep_cost.py --setup mnist --data DIR --rounds 3`: interleaved rounds; CPU seconds of the whole
tree of processes and wall seconds, medians and ranges, and their ratios within this run. The trained teacher (random
weights: its cost is the same) is given to all; nothing is pruned; every variant starts with an empty cache and folder.
"""

import argparse
import ctypes
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from floor_sweep import prepare
from sweep_parts import SETUPS, Setup, network, recipe

HERE = Path(__file__).parent
PR_SET_CHILD_SUBREAPER = 36


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setup", choices=list(SETUPS), default="mnist_small")
    parser.add_argument("--data", required=True, type=Path, help="folder of the data sets")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--only", nargs="+", choices=["floor", "kdtrain", "obvious"], default=["floor", "kdtrain", "obvious"]
    )
    chosen = parser.parse_args()
    # Ray's processes outlive their parents: whoever is left behind becomes ours, and its CPU time is counted
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    setup = SETUPS[chosen.setup]
    with tempfile.TemporaryDirectory(prefix="sweep-cost-") as folder:
        scratch = Path(folder)
        teacher = scratch / "teacher.pth"
        torch.manual_seed(1)
        torch.save(network(setup.teacher, setup.classes).state_dict(), teacher)
        (scratch / "ready").mkdir()
        times = prepare(setup, teacher, chosen.data.absolute(), scratch / "ready")
        print(json.dumps({"setup": setup.as_json(), **times}), flush=True)
        spent: dict[str, list[tuple[float, float]]] = {name: [] for name in chosen.only}
        for number in range(chosen.rounds):
            for name in chosen.only:
                spent[name].append(measured(command(name, setup, teacher, chosen.data.absolute(), scratch, number)))
                cpu, wall = spent[name][-1]
                print(f"round {number + 1} {name}: {cpu:.1f} CPU s, {wall:.1f} s wall", flush=True)
    report(spent)


def command(name: str, setup: Setup, teacher: Path, data: Path, scratch: Path, number: int) -> list[str]:
    """What is timed; its folders are fresh."""
    folder = scratch / f"{name}-{number}"
    folder.mkdir()
    os.environ["KDTRAIN_CACHE"] = str(folder / "cache")
    if name == "floor":
        return [sys.executable, str(HERE / "floor_sweep.py"), setup.name, str(scratch / "ready")]
    if name == "obvious":
        return [sys.executable, str(HERE / "obvious_sweep.py"), setup.name, str(teacher), str(data), str(folder)]
    study = {"trials": setup.trials, "sampler": {"name": "random"}, "confirm": {"best": 1, "seeds": 1}}
    file = folder / f"{setup.name}.yaml"
    file.write_text(yaml.safe_dump({"recipe": recipe(setup, teacher), "study": study}, sort_keys=False))
    return [sys.executable, str(HERE / "search_only.py"), str(file), str(folder / "results"), str(data)]


def measured(words: list[str]) -> tuple[float, float]:
    """(CPU seconds of the process and all below it, wall seconds)."""
    before, started = _cpu_of_children(), time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": f"{HERE.parent}:{HERE}", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    wall = time.perf_counter() - started
    if done.returncode:
        sys.exit(f"{' '.join(words)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    print("  " + done.stdout.strip().splitlines()[-1], flush=True)
    while True:  # processes that it left behind
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            break
    return _cpu_of_children() - before, wall


def _cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def report(spent: dict[str, list[tuple[float, float]]]) -> None:
    print(
        "\n| sweep | CPU s, median (range) | wall s, median (range) | CPU / floor | wall / floor |"
        "\n|---|--:|--:|--:|--:|"
    )
    medians: dict[str, Any] = {
        name: [statistics.median(each) for each in zip(*rows, strict=True)] for name, rows in spent.items()
    }
    for name, rows in spent.items():
        shown = [
            f"{statistics.median(each):.1f} ({min(each):.1f} to {max(each):.1f})" for each in zip(*rows, strict=True)
        ]
        floor = medians.get("floor")
        ratios = [f"{mine / its:.2f}" for mine, its in zip(medians[name], floor, strict=True)] if floor else ["—", "—"]
        print(f"| {name} | {' | '.join([*shown, *ratios])} |")
    if {"kdtrain", "obvious"} <= spent.keys():
        times = [other / ours for other, ours in zip(medians["obvious"], medians["kdtrain"], strict=True)]
        print(f"\nobvious / kdtrain: {times[0]:.2f} in CPU time, {times[1]:.2f} in wall time")
    shutil.rmtree(os.environ["KDTRAIN_CACHE"], ignore_errors=True)


if __name__ == "__main__":
    main()
