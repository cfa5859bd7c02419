"""Measure by how much a sweep's choice misses the best recipe, if it chooses after noisy trainings."""

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path

import optuna
import torch

from kdtrain.config import space
from kdtrain.config.parameter import Values
from kdtrain.config.recipe import teacher_recipe
from kdtrain.config.sweep import Sweep, load_sweep
from kdtrain.storage.cache import Cache
from kdtrain.training.final_evaluation import read_test
from kdtrain.training.trainer import train
from kdtrain.trials.store import Store
from kdtrain.trials.workspace import Workspace

METRICS = ("val/accuracy", "val/nll", "test/accuracy")


def train_surface(sweep: Sweep, recipes: int, seeds: int, file: Path, workspace: Workspace) -> None:
    """Train random recipes of a sweep's space with every seed; append what the file does not have, one row each."""
    points = random_points(sweep, recipes)
    names = [parameter.name for parameter in sweep.parameters]
    if not file.exists():
        file.write_text(",".join(["recipe", "seed", *names, *METRICS]) + "\n")
    with file.open(newline="") as rows:
        done = {(int(row["recipe"]), int(row["seed"])) for row in csv.DictReader(rows)}
    for seed in range(seeds):
        for number, point in enumerate(points):
            if (number, seed) not in done:
                measured = [f"{value:.5g}" for value in trained(sweep, point, seed, workspace)]
                values = [f"{point[name]:.4g}" if name in point else "" for name in names]
                with file.open("a") as rows:
                    rows.write(",".join([str(number), str(seed), *values, *measured]) + "\n")


def random_points(sweep: Sweep, count: int) -> list[Values]:
    """Return points of a sweep's space, drawn uniformly (or log-uniformly) with the study's seed."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=sweep.study.seed))
    return [space.suggest(study.ask(), sweep.tree) for _ in range(count)]


def trained(sweep: Sweep, point: Values, seed: int, workspace: Workspace) -> list[float]:
    """Return the metrics of one training at its best epoch; NaN if its loss became non-finite."""
    recipe = sweep.recipe_for(point, seed)
    teacher = teacher_recipe(recipe)
    if teacher is not None:
        train(teacher, workspace, final=True)
    if train(recipe, workspace, final=True, shared_readings=sweep.readings())["state"] == "failed":
        return [float("nan")] * len(METRICS)
    outcome = read_test(recipe, workspace)
    assert outcome["best"] is not None
    assert outcome["test"] is not None
    metrics = {**outcome["best"], **outcome["test"]}
    return [float(metrics[name]) for name in METRICS]  # type: ignore[arg-type]


def main(arguments: Sequence[str] | None = None) -> None:
    """Train the recipes, or simulate choices from their table."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train", help="train random recipes of a sweep's space with many seeds")
    training.add_argument("sweep", type=Path)
    training.add_argument("file", type=Path, help="the CSV that is written, or continued")
    training.add_argument("--set", action="append", default=[], dest="overrides", metavar="PATH=VALUE")
    training.add_argument("--recipes", type=int, default=64)
    training.add_argument("--seeds", type=int, default=20)
    training.add_argument("--results", type=Path, default=Path("results"))
    training.add_argument("--data", type=Path, default=Path("data"))
    given = parser.parse_args(arguments)
    if given.command == "train":
        torch.set_num_threads(1)
        workspace = Workspace(Store(given.results), given.data, cache=Cache(given.results / "cache", 1 << 30))
        sweep = load_sweep(given.sweep, given.overrides)
        train_surface(sweep, given.recipes, given.seeds, given.file, workspace)


if __name__ == "__main__":
    main()
