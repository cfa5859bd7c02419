"""Measure what a sweep costs: kdtrain against (a) the obvious Ray Tune script and (b) the floor.

`python benchmarks/sweep_cost.py --setup mnist --data DIR --rounds 3` prints wall seconds and CPU seconds of the whole
tree of processes: medians and ranges over interleaved rounds, and ratios within this run. All three train the same
recipes with the same teacher (random weights cost the same). Nothing is pruned, and each starts with an empty cache and
folder. With several `--trials` it also prints the cost of one more trial.
"""

import argparse
import ctypes
import itertools
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import torch
import yaml
from floor_sweep import prepare
from sweep_parts import SETUPS, Setup, network, sweep

HERE = Path(__file__).parent
PR_SET_CHILD_SUBREAPER = 36
POLL_S = 0.1
TICKS = os.sysconf("SC_CLK_TCK")
NAMES = ["floor", "kdtrain", "obvious"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setup", choices=list(SETUPS), default="mnist_small")
    parser.add_argument("--data", required=True, type=Path, help="folder of the data sets")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--trials", type=int, nargs="+", default=[16])
    parser.add_argument("--images", type=int, help="of training (default: the setup's)")
    chosen = parser.parse_args()
    # Ray's processes outlive their parents; they become children of this process, so that their CPU time is counted
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    one = SETUPS[chosen.setup]
    setups = [one._replace(trials=trials, images=chosen.images or one.images) for trials in chosen.trials]
    data = chosen.data.absolute()
    with tempfile.TemporaryDirectory(prefix="sweep-cost-") as folder:
        scratch = Path(folder)
        teacher = scratch / "teacher.pth"
        torch.manual_seed(1)
        torch.save(network(one.teacher, one.class_count).state_dict(), teacher)
        (scratch / "ready").mkdir()
        teacher_s = prepare(setups[0], teacher, data, scratch / "ready")
        print(f"{setups[0]}\nT {teacher_s * 1e3:.4f} ms an image", flush=True)
        spent: dict[tuple[str, int], list[tuple[float, float]]] = {}
        for number in range(chosen.rounds):
            for setup, name in itertools.product(setups, chosen.only):
                cpu, wall = measured(command(name, setup, teacher, data, scratch, number))
                spent.setdefault((name, setup.trials), []).append((cpu, wall))
                print(f"round {number + 1} {name}, {setup.trials} trials: {cpu:.1f} CPU s, {wall:.1f} s wall")
    report(spent)


def command(name: str, setup: Setup, teacher: Path, data: Path, scratch: Path, number: int) -> list[str]:
    """Return the command that is timed, with fresh folders."""
    folder = scratch / f"{name}-{setup.trials}-{number}"
    folder.mkdir()
    os.environ["KDTRAIN_CACHE"] = str(folder / "cache")
    if name == "floor":
        return [sys.executable, str(HERE / "floor_sweep.py"), setup.text(), str(scratch / "ready")]
    if name == "obvious":
        return [sys.executable, str(HERE / "obvious_sweep.py"), setup.text(), str(teacher), str(data), str(folder)]
    file = folder / f"{setup.name}.yaml"
    file.write_text(yaml.safe_dump(sweep(setup, teacher), sort_keys=False))
    return [sys.executable, str(HERE / "search_only.py"), str(file), str(folder / "results"), str(data)]


def measured(words: list[str]) -> tuple[float, float]:
    """Return the CPU seconds of a command and all processes below it, and its wall seconds."""
    started, spent = time.perf_counter(), {}
    environment = {**os.environ, "PYTHONPATH": f"{HERE.parent}:{HERE}", "PYTHONWARNINGS": "ignore"}
    if words[1].endswith("floor_sweep.py"):  # freed memory stays with the process, as in kdtrain's trials
        environment |= {"MALLOC_TRIM_THRESHOLD_": str(2**31 - 1), "MALLOC_MMAP_THRESHOLD_": str(2**30)}
    with tempfile.TemporaryFile("w+") as told:
        running = subprocess.Popen(words, env=environment, stdout=told, stderr=subprocess.STDOUT)
        while os.waitid(os.P_PID, running.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            spent |= cpu_seconds_below()
            time.sleep(POLL_S)
        wall = time.perf_counter() - started
        while below := cpu_seconds_below():  # until the processes that it left behind have ended
            spent |= below
            running.poll()
            with suppress(ChildProcessError):
                os.waitpid(-1, os.WNOHANG)
            time.sleep(POLL_S)
        told.seek(0)
        lines = told.read().strip().splitlines()
    if running.returncode:
        sys.exit("\n".join([f"{' '.join(words)} failed:", *lines[-40:]]))
    print("  " + lines[-1], flush=True)
    return sum(spent.values()), wall


def cpu_seconds_below() -> dict[tuple[int, int], float]:
    """Return the CPU seconds so far of every process below this one, by (process, start).

    The kernel's sum over ended children would not do: Ray's raylet ignores SIGCHLD, and then nothing is added to it.
    """
    rows = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):
            fields = file.read_text().rpartition(")")[2].split()
            rows[int(file.parent.name)] = (int(fields[1]), int(fields[19]), int(fields[11]) + int(fields[12]))
    found, parents = {}, {os.getpid()}
    while parents:
        parents = {process for process, (parent, *_) in rows.items() if parent in parents}
        found |= {(process, rows[process][1]): rows[process][2] / TICKS for process in parents}
    return found


def report(spent: dict[tuple[str, int], list[tuple[float, float]]]) -> None:
    """Print medians, ranges and ratios."""
    print("\n| sweep | trials | CPU s, median (range) | wall s, median (range) | CPU / floor | wall / floor |")
    print("|---|--:|--:|--:|--:|--:|")
    medians = {key: [statistics.median(each) for each in zip(*rows, strict=True)] for key, rows in spent.items()}
    unknown = [math.nan, math.nan]
    for (name, trials), rows in spent.items():
        columns = zip(*rows, strict=True)
        shown = [f"{statistics.median(each):.1f} ({min(each):.1f} to {max(each):.1f})" for each in columns]
        floor = medians.get(("floor", trials), unknown)
        ratios = [f"{mine / its:.2f}" for mine, its in zip(medians[name, trials], floor, strict=True)]
        print(f"| {name} | {trials} | {' | '.join([*shown, *ratios])} |")
    counts = sorted({trials for _, trials in spent})
    for trials in counts:
        pair = [medians.get((name, trials), unknown) for name in ("obvious", "kdtrain")]
        cpu, wall = (other / ours for other, ours in zip(*pair, strict=True))
        print(f"obvious / kdtrain at {trials} trials: {cpu:.2f} in CPU time, {wall:.2f} in wall time")
    for fewer, more in itertools.pairwise(counts):
        for name in dict.fromkeys(name for name, _ in spent):
            each = (medians[name, more][0] - medians[name, fewer][0]) / (more - fewer)
            print(f"CPU s for each trial of {name} from {fewer} to {more}: {each:.3f}")


if __name__ == "__main__":
    main()
