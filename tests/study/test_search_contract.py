"""The contract of every sampler and pruner: repeatable, the same after a kill, and no key without an effect."""

import copy
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from studies import TREE, sweep_file
from test_search import Driver, epochs_of, lr_of, states

from kdtrain.config.search_settings import NamedPruner, NamedSampler
from kdtrain.config.sweep import Sweep, load_sweep
from kdtrain.config.yaml_reader import dump_yaml
from kdtrain.errors import UserError
from kdtrain.study.optuna_parts import build_sampler
from kdtrain.study.search import Search

TRIALS = 18
TRIALS_OF_GP = 10
"""Fewer, because a suggestion of the Gaussian process takes a second."""
OWN = '''
import optuna


class Halving(optuna.samplers.BaseSampler):
    """Goes on from the best trial so far, and remembers in the trial how wide it looks."""

    def __init__(self, seed=None, width=0.5):
        self.inner, self.width = optuna.samplers.RandomSampler(seed), width

    def infer_relative_search_space(self, study, trial):
        return {}

    def sample_relative(self, study, trial, search_space):
        return {}

    def sample_independent(self, study, trial, name, distribution):
        drawn = self.inner.sample_independent(study, trial, name, distribution)
        best = [t for t in study.get_trials(deepcopy=False) if t.value is not None and name in t.params]
        if not best or not isinstance(drawn, float):
            return drawn
        start = max(best, key=lambda t: t.value).params[name]
        return start + self.width * (drawn - start)


class Threshold(optuna.pruners.BasePruner):
    """Stops a trial whose value is below that of the earlier trial before it."""

    def __init__(self, factor=1.0):
        self.factor = factor

    def prune(self, study, trial):
        others = [t.intermediate_values.get(trial.last_step) for t in study.get_trials(deepcopy=False)]
        others = [value for value in others[:-1] if value is not None]
        return bool(others) and trial.intermediate_values[trial.last_step] < self.factor * others[-1]
'''
WEIGHT = {"weight": {"loguniform": [0.05, 20]}}
SPACE = {
    "method": {"name": "kd", "balance": WEIGHT, "temperature": {"loguniform": [1, 20]}},
    "optimizer": {
        "choice": [
            {"name": "adam", "lr": {"loguniform": [0.0001, 0.03]}},
            {"name": "sgd", "lr": {"loguniform": [0.001, 0.3]}, "momentum": {"uniform": [0.5, 0.99]}},
        ]
    },
    "batch_size": {"logint": [16, 128]},
    "epochs": 9,
}
METHODS = {**SPACE, "method": {"choice": [SPACE["method"], {"name": "at", "balance": WEIGHT}]}}
SAMPLERS: dict[str, dict[str, Any]] = {
    "tpe": {"name": "tpe", "startup_trials": 4},
    "gp": {"name": "gp", "startup_trials": 4},
    "cmaes": {"name": "cmaes", "population": 4},
    "random": {"name": "random"},
    "grid": {"name": "grid", "points": 2},
    "own": {"name": "own_contract:Halving"},
    "optuna's": {"name": "optuna.samplers:QMCSampler", "warn_independent_sampling": False},
}
PRUNERS: dict[str, dict[str, Any]] = {
    "asha": {"name": "asha", "min_epochs": 1, "reduction": 2},
    "asha by share": {"name": "asha", "min_share": 0.12, "reduction": 2},
    "median": {"name": "median", "startup_trials": 3, "min_epochs": 2},
    "percentile": {"name": "percentile", "startup_trials": 3, "min_epochs": 2, "percentile": 60},
    "hyperband": {"name": "hyperband", "min_epochs": 1, "reduction": 2},
    "hyperband by share": {"name": "hyperband", "min_share": 0.12, "reduction": 2},
    "none": {"name": "none"},
    "own": {"name": "own_contract:Threshold", "factor": 0.9},
    "optuna's": {"name": "optuna.pruners:ThresholdPruner", "lower": 0.2, "n_warmup_steps": 2},
}


@pytest.fixture(autouse=True)
def _own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_contract.py").write_text(OWN)
    monkeypatch.setitem(sys.modules, "own_contract", None)  # so that the module is removed again
    monkeypatch.delitem(sys.modules, "own_contract")


def sweep_of(folder: Path, recipe: dict[str, Any], **study: Any) -> Sweep:
    tree = copy.deepcopy(TREE)
    tree["recipe"] |= recipe
    own = {
        "batch_size": 32,
        "optimizer": {"name": "adam", "lr": 0.005},
        "lr_schedule": {"name": "constant"},
        "epochs": 2,
    }
    tree["recipe"]["teacher"] |= own
    trials = TRIALS_OF_GP if study.get("sampler") == SAMPLERS["gp"] else TRIALS
    tree["study"] = {"trials": trials, "batch": 4, "select": {"candidates": 2}} | study
    file = folder / "contract.yaml"
    file.write_text(dump_yaml(tree))
    return load_sweep(file)


def driver(sweep: Sweep, seed: int = 0) -> Driver:
    return Driver(Search("search", sweep), seed=seed)


def decisions(sweep: Sweep, seed: int = 0) -> list[Any]:
    return driver(sweep, seed).run(sweep.study.trials)


def after_a_kill(sweep: Sweep, ends: int) -> list[Any]:
    """Return the decisions of a search that is killed when so many trials have ended, and goes on in a new process."""
    killed = driver(sweep, seed=3)
    killed.run(sweep.study.trials, kill_after=ends)
    again = driver(sweep, seed=4)
    stored = json.loads(json.dumps(killed.journal))
    again.journal = {int(number): row for number, row in stored.items()}
    return again.run(sweep.study.trials)


@pytest.mark.parametrize(("space", "pruner"), [("conditional", "hyperband"), ("options", "asha")])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_sampler_repeats_itself_and_goes_on_after_a_kill(
    tmp_path: Path, sampler: str, space: str, pruner: str
) -> None:
    recipe = SPACE if space == "conditional" else METHODS
    sweep = sweep_of(tmp_path, recipe, sampler=SAMPLERS[sampler], pruner=PRUNERS[pruner])
    found = decisions(sweep)
    assert len(found) == sweep.study.trials
    assert found == decisions(sweep, seed=1), "trials end in another order"
    for ends in (3, sweep.study.trials - 4):  # within the random start, and after it
        assert found == after_a_kill(sweep, ends)


@pytest.mark.parametrize("sampler", ["tpe", "random"])
@pytest.mark.parametrize("pruner", PRUNERS)
def test_a_pruner_repeats_itself_and_goes_on_after_a_kill(tmp_path: Path, pruner: str, sampler: str) -> None:
    sweep = sweep_of(tmp_path, SPACE, sampler=SAMPLERS[sampler], pruner=PRUNERS[pruner])
    found = decisions(sweep)
    assert (states(found)["pruned"] > 2) == (pruner != "none")
    assert states(found)["complete"] > 2
    assert found == decisions(sweep, seed=1)
    for ends in (3, sweep.study.trials - 4):  # within the random start, and after it
        assert found == after_a_kill(sweep, ends)


def keys(kinds: Any) -> list[tuple[str, str]]:
    """Return every key of every named sampler or pruner."""
    return [
        (kind.model_fields["name"].annotation.__args__[0], key) for kind in kinds.__args__ for key in kind.model_fields
    ]


OTHER_VALUES: dict[str, Any] = {
    "startup_trials": 9, "population": 8, "points": 3, "min_epochs": 3, "min_share": 0.4, "reduction": 3,
    "percentile": 20.0,
}  # fmt: skip


@pytest.mark.parametrize(("name", "key"), keys(NamedSampler))
def test_every_key_of_a_sampler_changes_what_is_suggested(tmp_path: Path, name: str, key: str) -> None:
    first = {**SAMPLERS[name]}
    other = {"name": "tpe" if name == "random" else "random"} if key == "name" else {**first, key: OTHER_VALUES[key]}
    trials = TRIALS_OF_GP if name == "gp" else TRIALS
    one, two = (sweep_of(tmp_path, SPACE, trials=trials, sampler=sampler) for sampler in (first, other))
    assert [row[1] for row in decisions(one)] != [row[1] for row in decisions(two)]


@pytest.mark.parametrize(("name", "key"), keys(NamedPruner))
def test_every_key_of_a_pruner_changes_what_is_pruned(tmp_path: Path, name: str, key: str) -> None:
    first = {**PRUNERS[name]}
    if key == "name":
        other = {"name": "none"} if name != "none" else PRUNERS["asha"]
    elif key == "min_share":
        del first["min_epochs"]
        first, other = {**first, key: 0.2}, {**first, key: 0.5}
    else:
        other = {**first, key: OTHER_VALUES[key]}
    one, two = (sweep_of(tmp_path, SPACE, sampler={"name": "random"}, pruner=pruner) for pruner in (first, other))
    assert decisions(one) != decisions(two)


@pytest.mark.parametrize(
    ("part", "settings"),
    [("sampler", {**SAMPLERS["own"], "width": 0.1}), ("pruner", {**PRUNERS["own"], "factor": 0.5})],
)
def test_every_argument_of_an_own_class_reaches_it(tmp_path: Path, part: str, settings: dict[str, Any]) -> None:
    parts = {"sampler": SAMPLERS["own"], "pruner": PRUNERS["own"]}
    one, two = (sweep_of(tmp_path, SPACE, **chosen) for chosen in (parts, {**parts, part: settings}))
    assert decisions(one) != decisions(two)


def test_shares_and_epochs_that_mean_the_same_decide_the_same(tmp_path: Path) -> None:
    """Of 9 epochs, a third is epoch 3."""
    for name in ("asha", "hyperband", "median", "percentile"):
        rest = {key: value for key, value in PRUNERS[name].items() if key != "min_epochs"}
        by_epochs, by_share = (
            sweep_of(tmp_path, SPACE, sampler={"name": "random"}, pruner={**rest, **start})
            for start in ({"min_epochs": 3}, {"min_share": 0.333333})
        )
        assert decisions(by_epochs) == decisions(by_share), name


def test_a_share_prunes_trials_of_different_lengths_at_their_own_epochs(tmp_path: Path) -> None:
    recipe = {**SPACE, "epochs": {"choice": [8, 16]}}
    pruner = {"name": "asha", "min_share": 0.25, "reduction": 2}
    search = Search("search", sweep_of(tmp_path, recipe, trials=48, sampler={"name": "random"}, pruner=pruner))
    stops: dict[Any, set[int | None]] = {8: set(), 16: set()}
    for number in range(48):
        values = search.suggest(number)
        search.plan(number, values)
        length, quality = int(values["epochs"]), 1 / (1 + lr_of(values))  # type: ignore[arg-type]
        rows: list[Any] = [{"epoch": epoch, "val/accuracy": quality} for epoch in range(1, length + 1)]
        stop = search.pruned_at(number, rows[:-1])
        stops[length].add(stop)
        search.tell(number, "pruned" if stop else "complete", quality, rows[:stop])
    assert stops == {8: {2, 4, None}, 16: {4, 8, None}}


@pytest.mark.parametrize("name", ["gp", "cmaes"])
def test_a_model_never_takes_in_a_conditional_parameter(tmp_path: Path, name: str) -> None:
    """All earlier trials have momentum, so Optuna alone would model it, and CMA-ES would keep its dimension."""
    import optuna

    sweep = sweep_of(tmp_path, SPACE, sampler=SAMPLERS[name])
    study = optuna.create_study(sampler=build_sampler(sweep, 1))
    lr = optuna.distributions.FloatDistribution(0.001, 0.3, log=True)
    weight = optuna.distributions.FloatDistribution(0.05, 20, log=True)
    for value in (0.1, 0.2):
        study.add_trial(
            optuna.create_trial(
                params={"optimizer[sgd].lr": 0.1, "method.balance.weight": value},
                distributions={"optimizer[sgd].lr": lr, "method.balance.weight": weight},
                value=value,
            )
        )
    assert list(study.sampler.infer_relative_search_space(study, study.trials[0])) == ["method.balance.weight"]


def test_made_up_trainings_have_nine_epochs() -> None:
    assert len(epochs_of({"optimizer.lr": 0.01})) == SPACE["epochs"]


BROKEN = """
import optuna

class Raises(optuna.samplers.RandomSampler):
    def sample_independent(self, study, trial, name, distribution):
        raise KeyError("forgotten")

class Far(optuna.samplers.RandomSampler):
    def sample_independent(self, study, trial, name, distribution):
        return 1e9

class Unstored(optuna.samplers.RandomSampler):
    def sample_independent(self, study, trial, name, distribution):
        study._storage.set_trial_system_attr(trial._trial_id, "kept", {1, 2})
        return super().sample_independent(study, trial, name, distribution)

class Prunes(optuna.pruners.NopPruner):
    def prune(self, study, trial):
        raise RuntimeError("no idea")
"""


@pytest.mark.parametrize(
    ("part", "name", "text"),
    [
        ("sampler", "Raises", r"KeyError: 'forgotten' \(broken_search.py, line 6\)"),
        ("sampler", "Far", r"ValueError: "),
        ("sampler", "Unstored", r"TypeError: Object of type set is not JSON serializable"),
        ("pruner", "Prunes", r"RuntimeError: no idea \(broken_search.py, line 19\)"),
    ],
)
def test_what_an_own_class_raises_is_a_mistake_at_its_line(
    part: str, name: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "broken_search", raising=False)
    (tmp_path / "broken_search.py").write_text(BROKEN)
    file = sweep_file(tmp_path, study={"published": None, part: {"name": f"broken_search:{name}"}})
    search = Search("search", load_sweep(file))
    with pytest.raises(UserError, match=rf"small.yaml:\d+: study.{part}.name: broken_search:{name} fails: {text}"):  # noqa: PT012
        search.plan(0, search.suggest(0))
        search.pruned_at(0, [{"epoch": 1, "val/accuracy": 0.5}])  # type: ignore[list-item]
