"""Measure by how much a sweep's choice misses the best recipe, if it chooses after noisy trainings.

python benchmarks/selection.py train sweeps/digits_full.yaml benchmarks/data/selection_digits.csv
    trains 60 random recipes of that space with 20 seeds each (20 minutes of one core), or goes on with that
python benchmarks/selection.py simulate benchmarks/data/selection_digits.csv
    resamples searches from this table, and lets rules choose with equally many trainings
python benchmarks/selection.py simulate
    does the same with made-up recipes: standard deviation 1 between recipes, 1 between seeds

The regret is the true mean of the best recipe of a search minus that of the chosen one.
"""

import argparse
import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import optuna
import torch

from kdtrain.config import space
from kdtrain.config.needed_trainings import teacher_recipe
from kdtrain.config.parameter import Values
from kdtrain.config.sweep import Sweep, load_sweep
from kdtrain.storage.cache import Cache
from kdtrain.study import racing
from kdtrain.training.final_evaluation import read_test
from kdtrain.training.trainer import train
from kdtrain.trials.store import Store
from kdtrain.trials.workspace import Workspace

METRICS = ("val/accuracy", "val/nll", "test/accuracy")
TRIALS, TRAININGS, CANDIDATES = 40, 20, 8
TOLD_ROUNDS = (6, 4, 3, 3, 2, 2)
"""Trainings by round of the rule that is told the true means: the best split of six that were tried on digits."""
Draw = tuple[np.ndarray, np.ndarray]
"""The objective of a search's trials by seed, [trial, seed], and their true means. Seed 0 is the search's own."""


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
    return [space.suggest(study.ask(), sweep.tree, {}) for _ in range(count)]


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


@dataclass
class Search:
    """A finished search of one seed; `train` reveals what one of its recipes reaches with a fresh seed.

    `true_N` are the true means of its recipes in any order, and `noise` the standard deviation of a training around
    them: only the rule that is told them may look.
    """

    value_NS: np.ndarray
    true_N: np.ndarray
    noise: float
    spent: int = 0

    @property
    def ranked(self) -> list[int]:
        """Return the trials, best single value first."""
        return [int(each) for each in np.argsort(-self.value_NS[:, 0], kind="stable")]

    def train(self, trial: int, seed: int) -> float:
        """Return the objective of a trial's recipe with fresh seed 1, 2, ..."""
        self.spent += 1
        assert self.spent <= TRAININGS
        return float(self.value_NS[trial, seed])


def best_value(search: Search) -> int:
    """Choose the best single value."""
    return search.ranked[0]


def two_by_ten(search: Search) -> int:
    """Choose the better of the two best by the mean of ten fresh seeds each, as kdtrain did before the race."""
    seeds = range(1, TRAININGS // 2 + 1)
    return max(search.ranked[:2], key=lambda trial: np.mean([search.train(trial, seed) for seed in seeds]))


def doubling(search: Search) -> int:
    """Choose as the Intensifier of SMAC3 does (Lindauer et al. 2022), with fresh seeds.

    A challenger gets 1, 2, 4, ... of the incumbent's seeds; it is rejected as soon as its mean is not better on those
    that it has, and becomes the incumbent when it has them all. If no challenger is left, the incumbent gets one more
    seed, and the next trial challenges it.
    """
    incumbent, *others = search.ranked
    seen = {trial: [] for trial in search.ranked}
    seen[incumbent].append(search.train(incumbent, 1))
    queue, others = [(trial, 1) for trial in others[: CANDIDATES - 1]], others[CANDIDATES - 1 :]
    while search.spent < TRAININGS:
        if not queue:
            seen[incumbent].append(search.train(incumbent, len(seen[incumbent]) + 1))
            queue, others = [(trial, 1) for trial in others[:1]], others[1:]
            continue
        trial, step = queue.pop(0)
        own, best, rejected = seen[trial], seen[incumbent], False
        for _ in range(min(step, len(best) - len(own), TRAININGS - search.spent)):
            own.append(search.train(trial, len(own) + 1))
            if rejected := np.mean(own) <= np.mean(best[: len(own)]):
                break
        if not rejected and len(own) == len(best):
            incumbent = trial
        elif not rejected:
            queue.append((trial, 2 * step))
    return incumbent


def race(search: Search) -> int:
    """Choose as the stage select does."""
    keys = {trial: str(trial) for trial in search.ranked}
    values = {keys[trial]: {0: float(search.value_NS[trial, 0])} for trial in search.ranked}
    candidates = in_race = [keys[trial] for trial in search.ranked[:CANDIDATES]]
    ties = {key: (rank,) for rank, key in enumerate(candidates)}
    for seed in range(1, TRAININGS + 1):
        for key in in_race:
            values[key][seed] = search.train(int(key), seed)
        found = racing.posterior(values, candidates)
        best = racing.leader(found, in_race, ties)
        in_race = racing.next_round(found, in_race, ties, TRAININGS - search.spent)
        if len(in_race) < 2:
            break
    return int(best)


def told(search: Search) -> int:
    """Choose with Bayes' theorem, told the true means of all recipes, though not whose they are, and the noise.

    No sweep has this knowledge. What it cannot choose with equally many trainings, no rule can be expected to choose.
    """
    mean_M = np.sort(search.true_N)
    log_NM = -0.5 * ((search.value_NS[:, :1] - mean_M) / search.noise) ** 2
    for seed, trained in enumerate(TOLD_ROUNDS, start=1):
        for trial in np.argsort(-_means(log_NM, mean_M), kind="stable")[:trained]:
            log_NM[trial] -= 0.5 * ((search.train(int(trial), seed) - mean_M) / search.noise) ** 2
    return int(np.argmax(_means(log_NM, mean_M)))


def _means(log_NM: np.ndarray, mean_M: np.ndarray) -> np.ndarray:
    """Return the posterior mean of each recipe from the log-likelihoods of its being the one of each true mean."""
    share_NM = np.exp(log_NM - log_NM.max(1, keepdims=True))
    return share_NM @ mean_M / share_NM.sum(1)


RULES = {
    "best single value": best_value,
    "2 candidates x 10 seeds": two_by_ten,
    "doubling (SMAC3)": doubling,
    "race": race,
    "told the true means": told,
}


def table_draws(file: Path, draws: int, true: str) -> Iterator[Draw]:
    """Yield searches of 40 recipes of a table, in percent, with its seeds in random order; `true` names a metric."""
    with file.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    value_RS, true_RS = (percent(rows, metric) for metric in ("val/accuracy", true))
    for draw in range(draws):
        random = np.random.default_rng(draw)
        trials, order = random.permutation(len(value_RS))[:TRIALS], random.permutation(value_RS.shape[1])
        yield value_RS[trials][:, order], true_RS[trials].mean(1)


def percent(rows: Sequence[dict[str, str]], metric: str) -> np.ndarray:
    """Return a metric of all recipes and seeds, [recipe, seed], in percent."""
    value = {(int(row["recipe"]), int(row["seed"])): 100 * float(row[metric]) for row in rows}
    recipes, seeds = sorted({recipe for recipe, _ in value}), sorted({seed for _, seed in value})
    return np.array([[value[recipe, seed] for seed in seeds] for recipe in recipes])


def made_up_draws(draws: int) -> Iterator[Draw]:
    """Yield searches of 40 recipes with normal means and normal noise, both of standard deviation 1."""
    for draw in range(draws):
        random = np.random.default_rng(draw)
        true_N = random.standard_normal(TRIALS)
        yield true_N[:, None] + random.standard_normal((TRIALS, TRAININGS + 1)), true_N


def regrets(rule: Callable[[Search], int], draws: Sequence[Draw]) -> np.ndarray:
    """Return the regret of a rule in each search."""
    # of most recipes, not the divergent ones; more than 0, as values without noise would have
    noise = float(np.median([np.std(value_NS, axis=1) for value_NS, _ in draws])) or 1e-6
    return np.array([true_N.max() - true_N[rule(Search(value_NS, true_N, noise))] for value_NS, true_N in draws])


def simulate(draws: Sequence[Draw]) -> None:
    """Print each rule's mean regret and its ratio to that of two candidates, with 95 % intervals by bootstrap."""
    found = {name: regrets(rule, draws) for name, rule in RULES.items()}
    sample = np.random.default_rng(0).integers(0, len(draws), (1000, len(draws)))
    base = found["2 candidates x 10 seeds"]
    print(f"{len(draws)} searches of {TRIALS} trials; {TRAININGS} trainings more, but for the best single value")
    print(f"{'':24} {'regret':>8} {'95 % interval':>16} {'of 2 x 10':>10} {'95 % interval':>16} {'9 of 10 below':>14}")
    for name, regret in found.items():
        means, ratios = regret[sample].mean(1), regret[sample].mean(1) / base[sample].mean(1)
        columns = [f"{regret.mean():8.3f} {_interval(means):>16} {regret.mean() / base.mean():10.2f}"]
        print(f"{name:24}", *columns, f"{_interval(ratios):>16} {np.quantile(regret, 0.9):14.2f}")


def _interval(values: np.ndarray) -> str:
    low, high = np.quantile(values, [0.025, 0.975])
    return f"{low:.2f} to {high:.2f}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Train the recipes, or simulate choices from their table."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train", help="train random recipes of a sweep's space with many seeds")
    training.add_argument("sweep", type=Path)
    training.add_argument("file", type=Path, help="the CSV that is written, or continued")
    training.add_argument("--set", action="append", default=[], dest="overrides", metavar="PATH=VALUE")
    training.add_argument("--recipes", type=int, default=60)
    training.add_argument("--seeds", type=int, default=20)
    training.add_argument("--results", type=Path, default=Path("results"))
    training.add_argument("--data", type=Path, default=Path("data"))
    simulation = commands.add_parser("simulate", help="resample searches from a table, or make them up")
    simulation.add_argument("file", type=Path, nargs="?", help="the CSV of a training; made-up recipes without it")
    simulation.add_argument("--draws", type=int, default=1000)
    simulation.add_argument("--true", default="val/accuracy", choices=[METRICS[0], METRICS[2]], help="regret is in it")
    given = parser.parse_args(arguments)
    if given.command == "train":
        torch.set_num_threads(1)
        workspace = Workspace(Store(given.results), given.data, cache=Cache(given.results / "cache", 1 << 30))
        sweep = load_sweep(given.sweep, given.overrides)
        train_surface(sweep, given.recipes, given.seeds, given.file, workspace)
    elif given.file is None:
        simulate(list(made_up_draws(given.draws)))
    else:
        simulate(list(table_draws(given.file, given.draws, given.true)))


if __name__ == "__main__":
    main()
