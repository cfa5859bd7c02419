"""Measure the driver with instant trainings: `python benchmarks/driver_scale.py --trials 100 1000 5000 --report`.

A study carries out its search. Its trainings end at once: rows of made-up epochs are written to the store. For each
number of trials it prints the CPU time per trial of everything that the driver does (suggestions, pruning questions,
journal, ends) beside Optuna's own `ask`, whose time is shown too, and the peak memory. The time in which this script
makes up and writes a training is left out. To save time only the last `--asked` trials are suggested by the sampler;
the earlier ones are drawn at random, which changes the time of `ask` only. `--report` times the report of each folder.
"""

import argparse
import math
import random
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import optuna
import yaml

from kdtrain.config.sweep import load_sweep
from kdtrain.study import optuna_parts, search
from kdtrain.study.description import describe
from kdtrain.study.jobs import Job, JobStream
from kdtrain.study.journal import StudyJournal
from kdtrain.study.searching import run_search
from kdtrain.study.study import Study
from kdtrain.trials.outcome import outcome_row
from kdtrain.trials.store import Store
from kdtrain.trials.workspace import Workspace

EPOCHS = 20
NO_DATA = Path("the digits need no data folder")
RECIPE = {
    "data": {"name": "digits", "resolution": 16},
    "teacher": {"model": "lenet5_teacher", "optimizer": {"name": "adam", "lr": 0.01}, "label_smoothing": 0.0},
    "student": {"model": "lenet5_student"},
    "method": {
        "name": "kd",
        "balance": {"weight": {"loguniform": [0.05, 20.0]}},
        "temperature": {"loguniform": [1.0, 20.0]},
    },
    "optimizer": {"name": "adamw", "lr": {"loguniform": [1.0e-4, 0.03]}, "weight_decay": {"loguniform": [1e-5, 0.1]}},
    "label_smoothing": {"uniform": [0.0, 0.2]},
    "lr_schedule": {"name": "constant"},
    "batch_size": 16,
    "epochs": EPOCHS,
}
TIMES = {"seconds": 1.0, "teacher_images": 1000, "teacher_seconds": 0.1, "peak_memory_bytes": 1_000_000}
RECORD: dict[str, Any] = {
    "numerics": 1,
    "teacher": None,
    "weights": [1.0, 1.0],
    "data": {"name": "digits", "fingerprint": "f", "classes": 10, "train": 1077, "val": 360, "test": 360},
    "parameters": 10_000,
    "environment": {"device": "cpu", "threads": 1, "workers": 1, "git_commit": None, "versions": {}},
}


class SearchOnly(Study):
    """A study of one stage."""

    def jobs(self) -> JobStream:
        yield from run_search(self, self.search)


class Clock:
    """The CPU seconds of this thread that were spent in some functions."""

    def __init__(self) -> None:
        self.seconds, self.depth = 0.0, 0

    @contextmanager
    def running(self) -> Iterator[None]:
        start, self.depth = time.thread_time(), self.depth + 1
        try:
            yield
        finally:
            self.depth -= 1
            self.seconds += time.thread_time() - start if self.depth == 0 else 0.0

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            with self.running():
                return function(*args, **options)

        return call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, nargs="+", default=[100, 1000, 5000])
    parser.add_argument("--asked", type=int, default=200, help="number of the last trials that the sampler suggests")
    parser.add_argument("--sampler", default="tpe")
    parser.add_argument("--pruner", default="{name: asha, min_epochs: 2, reduction: 3}")
    parser.add_argument("--order", choices=["batches", "free"], default="batches")
    parser.add_argument("--report", action="store_true", help="time the report too")
    chosen = parser.parse_args()
    print("trials  driver ms/trial  of the last 100  ask ms of the last  peak MB")
    for trials in chosen.trials:
        with tempfile.TemporaryDirectory(prefix="driver-scale-") as folder:
            measure(Path(folder), trials, chosen)


def measure(folder: Path, trials: int, chosen: argparse.Namespace) -> None:
    """Carry out a search of instant trainings, and print a line."""
    settings = {"trials": trials, "sampler": {"name": chosen.sampler}, "pruner": yaml.safe_load(chosen.pruner)}
    file = folder / "scale.yaml"
    file.write_text(yaml.safe_dump({"recipe": RECIPE, "study": {**settings, "order": chosen.order}}))
    sweep = load_sweep(file)
    journal = StudyJournal(folder / "results" / sweep.name)
    journal.open(describe(sweep, NO_DATA), file.read_text())
    study = SearchOnly(sweep, Workspace(Store(folder / "results"), NO_DATA), journal)
    ask, training = Clock(), Clock()
    real_sampler, asked = optuna_parts.build_sampler, trials - chosen.asked

    def sampler(sweep: Any, seed: int, *rest: Any) -> optuna.samplers.BaseSampler:
        early = len(study.search.planned) < asked
        return optuna.samplers.RandomSampler(seed=seed) if early else real_sampler(sweep, seed, *rest)

    suggesting = ("suggest_float", "suggest_int", "suggest_categorical")  # a sampler works when the first one is called
    patches = [
        patch.object(search, "build_sampler", sampler),
        patch.object(optuna.Study, "ask", ask.timed(optuna.Study.ask)),
        *(patch.object(optuna.Trial, name, ask.timed(getattr(optuna.Trial, name))) for name in suggesting),
    ]
    for each in patches:
        each.start()
    spent = [0.0]  # after each trial: CPU seconds of the driver
    asks = [0.0]
    start = time.thread_time()
    for job in study.jobs():
        assert job is not None
        train(study, job, training)
        study.ended(job)
        spent.append(time.thread_time() - start - ask.seconds - training.seconds)
        asks.append(ask.seconds)
    for each in patches:
        each.stop()
    last = min(100, trials)
    each_ms, last_ms, ask_ms = (
        1e3 * spent[-1] / trials,
        1e3 * (spent[-1] - spent[-1 - last]) / last,
        1e3 * (asks[-1] - asks[-1 - last]) / last,
    )
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{trials:6d}  {each_ms:15.2f}  {last_ms:15.2f}  {ask_ms:18.2f}  {peak_mb:7.0f}", flush=True)
    if chosen.report:
        from analysis.report import write_report

        begun = time.thread_time()
        write_report(journal.folder)
        print(f"        report of {trials} trials: {time.thread_time() - begun:.1f} s")


def train(study: Study, job: Job, clock: Clock) -> None:
    """Write the epochs of a training that learns nothing, until the study prunes it, and its outcome."""
    folder = study.workspace.store.trial(job.trial_id)
    noise = random.Random(job.trial_id)
    best = 1 / (1 + abs(math.log(job.recipe.optimizer.lr / 0.003)))
    with clock.running():
        folder.write_recipe({**RECORD, "trial_id": job.trial_id, "recipe": job.recipe.model_dump(mode="json")})
    for epoch in range(1, EPOCHS + 1):
        accuracy = best * (1 - 0.8**epoch) + 0.02 * noise.random()
        row = {"epoch": epoch, "val/accuracy": accuracy, "val/mpa": accuracy, "val/nll": 2 - accuracy, "images": 1000}
        with clock.running():
            folder.append_epoch({**row, "train/loss": 2 - accuracy, "train/cross_entropy": 2 - accuracy, **TIMES})
        if study.should_prune(job, epoch):
            return
    with clock.running():
        folder.write_outcome(outcome_row("complete", None, folder))


if __name__ == "__main__":
    main()
