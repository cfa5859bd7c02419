"""TPE with pruning against random search without, on a surface of recorded trainings.

    python benchmarks/pruning.py record --recipes 400   # trains what benchmarks/data/pruning.csv does not have yet
    python benchmarks/pruning.py                        # replays searches on the recorded trainings

A recorded training is a random recipe of SWEEP's space, trained once on the digits: its validation accuracy after each
epoch. A loss that became non-finite ends the row early.
"""

import argparse
import csv
import tempfile
from pathlib import Path
from typing import Any

from kdtrain.config.parameter import Values
from kdtrain.config.space import suggest
from kdtrain.config.sweep import Sweep

FILE = Path(__file__).parent / "data" / "pruning.csv"
EPOCHS = 18
SWEEP: dict[str, Any] = {
    "recipe": {
        "data": {"name": "digits", "resolution": 16},
        "teacher": {
            "model": "lenet5_teacher",
            "epochs": 40,
            "optimizer": {"name": "adam", "lr": 0.005},
            "batch_size": 32,
        },
        "student": {"model": "lenet5_student"},
        "method": {
            "name": "kd",
            "balance": {"alpha_ce": {"uniform": [0, 1]}},
            "temperature": {"loguniform": [1, 20]},
        },
        "optimizer": {
            "name": "adam",
            "lr": {"loguniform": [1e-5, 0.3]},
            "weight_decay": {"loguniform": [1e-6, 0.1]},
        },
        "lr_schedule": {"name": "cosine"},
        "batch_size": 16,
        "epochs": EPOCHS,
    },
    "study": {"trials": 64},
}


def random_points(sweep: Sweep, count: int) -> list[Values]:
    """Return the first points of a seeded random search."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    return [suggest(study.ask(), sweep.tree) for _ in range(count)]


def record(count: int) -> None:
    """Train the recipes that the file does not have yet, and append a row for each."""
    import torch

    from kdtrain.config.recipe import teacher_recipe
    from kdtrain.training.trainer import train
    from kdtrain.trials.store import Store
    from kdtrain.trials.workspace import Workspace

    torch.set_num_threads(1)
    sweep = Sweep.from_dict(SWEEP, "pruning")
    points = random_points(sweep, count)
    names = [parameter.name for parameter in sweep.parameters]
    if not FILE.exists():
        write_row(["number", *names, *(f"epoch {epoch}" for epoch in range(1, EPOCHS + 1))])
    done = {int(row["number"]) for row in read_rows()}
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace(Store(Path(folder)), Path(folder), torch.device("cpu"))
        taught_by = teacher_recipe(sweep.recipe_for(points[0], 0))
        assert taught_by is not None
        train(taught_by, workspace, final=True)
        for number, values in enumerate(points):
            if number in done:
                continue
            recipe = sweep.recipe_for(values, 0)
            train(recipe, workspace)
            epochs = workspace.store.trial(workspace.trial_id(recipe)).epochs()
            write_row(
                [number, *(f"{values[name]:.6g}" for name in names), *(f"{e['val/accuracy']:.4f}" for e in epochs)]
            )


def write_row(cells: list[Any]) -> None:
    with FILE.open("a", newline="") as file:
        csv.writer(file, lineterminator="\n").writerow(cells)


def read_rows() -> list[dict[str, str]]:
    with FILE.open(newline="") as file:
        return list(csv.DictReader(file))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", nargs="?", choices=("record", "replay"), default="replay")
    parser.add_argument("--recipes", type=int, default=400)
    chosen = parser.parse_args()
    if chosen.command == "record":
        record(chosen.recipes)
