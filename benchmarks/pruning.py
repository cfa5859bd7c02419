"""TPE with pruning against random search without, on a surface of recorded trainings.

    python benchmarks/pruning.py record --recipes 400   # trains what benchmarks/data/pruning.csv does not have yet
    python benchmarks/pruning.py                        # replays searches on the recorded trainings

A recorded training is a random recipe of SWEEP's space, trained once on the digits: its validation accuracy after each
epoch. A model of the recorded curves gives the curve of any other recipe: "forest" (100 extremely randomized trees),
"neighbours" (the mean of the five nearest recorded recipes in the unit cube of the space, weighted by
1 / (distance + 0.02)), or "nearest" (the nearest one). A random search trains every trial to its end. Another search
counts the epochs that it trains until a trial that was not pruned is at least as good as the best of a random search,
and gives up after as many epochs.
"""

import argparse
import csv
import math
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from sklearn.ensemble import ExtraTreesRegressor
from sklearn.neighbors import KNeighborsRegressor

from kdtrain.config.parameter import Parameter, Values
from kdtrain.config.space import suggest
from kdtrain.config.sweep import Sweep
from kdtrain.study.search import Search

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
MODELS: dict[str, Any] = {
    "forest": lambda: ExtraTreesRegressor(100, min_samples_leaf=2, random_state=0),
    "neighbours": lambda: KNeighborsRegressor(5, weights=lambda distances: 1 / (distances + 0.02)),
    "nearest": lambda: KNeighborsRegressor(1),
}
OTHER_SEEDS = 1_000
"""Added to a search's seed, so that it does not draw the points of the random search that it is compared with."""
RANDOM = {"name": "random"}
TPE = {"name": "tpe"}
ASHA = {"name": "asha", "min_share": 0.1}
SEARCHES: dict[str, dict[str, Any]] = {
    "random, asha": {"sampler": RANDOM, "pruner": ASHA},
    "tpe": {"sampler": TPE},
    "tpe, asha": {"sampler": TPE, "pruner": ASHA},
    "tpe, hyperband": {"sampler": TPE, "pruner": {"name": "hyperband", "min_share": 0.1}},
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

    from kdtrain.config.needed_trainings import teacher_recipe
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


class Surface:
    """The validation accuracy of any recipe of the space by epoch, from the recorded ones."""

    def __init__(self, sweep: Sweep, kind: str) -> None:
        rows = [row for row in read_rows() if row[f"epoch {EPOCHS}"]]
        self.parameters = sweep.parameters
        points = np.array([self._unit({p.name: float(row[p.name]) for p in self.parameters}) for row in rows])
        curves = np.array([[float(row[f"epoch {epoch}"]) for epoch in range(1, EPOCHS + 1)] for row in rows])
        self.size, self.model = len(rows), MODELS[kind]().fit(points, curves)

    def curve(self, values: Values) -> list[float]:
        curve: list[float] = self.model.predict([self._unit(values)])[0].tolist()
        return curve

    def _unit(self, values: Values) -> list[float]:
        return [self._share(p, float(values[p.name])) for p in self.parameters]  # type: ignore[arg-type]

    @staticmethod
    def _share(p: Parameter, value: float) -> float:
        low, high = (math.log(p.low), math.log(p.high)) if p.is_log else (p.low, p.high)
        return ((math.log(value) if p.is_log else value) - low) / (high - low)


def searched(
    surface: Surface, seed: int, study: dict[str, Any], target: float = math.inf, most: float = math.inf
) -> tuple[float, int]:
    """Carry a search out until a trial reaches the target or `most` epochs are spent; return best value and epochs."""
    sweep = Sweep.from_dict({**SWEEP, "study": {"seed": seed, "select": {"candidates": 2}, **study}}, "pruning")
    search = Search("search", sweep)
    best, spent = 0.0, 0
    for start in range(0, search.trials, sweep.study.batch):
        batch = search.batch_of(start)
        for number in batch:
            search.plan(number, search.suggest(number))
        for number in batch:
            curve = surface.curve(search.planned[number])
            rows: list[Any] = [{"epoch": epoch, "val/accuracy": value} for epoch, value in enumerate(curve, start=1)]
            stop = search.pruned_at(number, rows[:-1])
            rows = rows[:stop]
            spent += len(rows)
            value = max(row["val/accuracy"] for row in rows)
            search.tell(number, "pruned" if stop else "complete", value, rows)
            best = best if stop else max(best, value)
            if best >= target or spent >= most:
                return best, spent
    return best, spent


def replay(seeds: int, random_trials: int, kinds: list[str]) -> None:
    """Print, for each surface and each kind of search, the epochs until the random search's best value."""
    sweep = Sweep.from_dict(SWEEP, "pruning")
    for kind in kinds:
        surface, whole = Surface(sweep, kind), random_trials * EPOCHS
        randoms = [searched(surface, s, {"trials": random_trials, "sampler": RANDOM})[0] for s in range(seeds)]
        print(
            f"{kind}: {surface.size} recorded recipes; random search of {random_trials} trials, {whole} epochs: best"
            f" {median(randoms):.4f} ({min(randoms):.4f} to {max(randoms):.4f})",
            flush=True,
        )
        for name, study in SEARCHES.items():
            study = {"trials": whole, **study}
            found = [searched(surface, s + OTHER_SEEDS, study, target, whole) for s, target in enumerate(randoms)]
            epochs = [
                spent if best >= target else math.inf for (best, spent), target in zip(found, randoms, strict=True)
            ]
            reached = sum(map(math.isfinite, epochs))
            third = sum(3 * each <= whole for each in epochs)
            print(
                f"  {name:22} median {median(epochs):6.0f} epochs, {whole / median(epochs):4.1f} times fewer;"
                f" with at most as many epochs {reached} of {seeds}, with a third {third}",
                flush=True,
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", nargs="?", choices=("record", "replay"), default="replay")
    parser.add_argument("--recipes", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--surfaces", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--trials", type=int, default=64, help="of the random search")
    chosen = parser.parse_args()
    if chosen.command == "record":
        record(chosen.recipes)
    else:
        replay(chosen.seeds, chosen.trials, chosen.surfaces)
