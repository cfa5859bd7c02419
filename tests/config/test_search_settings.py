"""Samplers and pruners in a sweep file: names, keys, classes of the user's own, rungs, and what is refused."""

import sys
from pathlib import Path
from typing import Any

import pytest

from kdtrain.cli.main import main
from kdtrain.config.located import locate
from kdtrain.config.search_settings import Asha, Hyperband, Median, split_by_model, step_of
from kdtrain.config.sweep import Sweep, load_sweep
from kdtrain.config.yaml_reader import dump_yaml
from kdtrain.errors import UserError

RECIPE: dict[str, Any] = {
    "data": {"name": "digits", "resolution": 16},
    "teacher": {
        "model": "lenet5_teacher",
        "optimizer": {"name": "adam", "lr": 0.005},
        "epochs": 40,
        "label_smoothing": 0.0,
    },
    "student": {"model": "lenet5_student"},
    "method": {"name": "kd", "balance": {"alpha": 0.5}, "temperature": {"loguniform": [1, 20]}},
    "optimizer": {
        "choice": [
            {"name": "adam", "lr": {"loguniform": [1e-4, 0.1]}},
            {"name": "sgd", "lr": 0.1, "momentum": {"uniform": [0, 0.9]}},
        ]
    },
    "lr_schedule": {"name": "constant"},
    "batch_size": 32,
    "epochs": 20,
}
FILE = """
recipe: {recipe}
study:
  trials: 12
  sampler: {sampler}
  pruner: {pruner}
"""
OWN = """
import optuna


class Mine(optuna.samplers.RandomSampler):
    def __init__(self, seed=None, shift=0.0):
        super().__init__(seed)


class Unseeded(optuna.samplers.RandomSampler):
    def __init__(self, shift=0.0):
        super().__init__(0)


class Picky(optuna.pruners.NopPruner):
    def __init__(self, patience, level=1.0):
        if patience < 1:
            raise ValueError("patience must be at least 1")


class Hollow(optuna.pruners.BasePruner):
    pass


class Unrelated:
    pass


number = 3
"""


@pytest.fixture(autouse=True)
def _fresh_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test has a module own_search of its own, as each process of a user has."""
    for name in ("own_search", "own_here", "broken_search"):
        monkeypatch.setitem(sys.modules, name, None)  # so that it is removed again
        monkeypatch.delitem(sys.modules, name)


def write(folder: Path, sampler: str = "{name: tpe}", pruner: str = "{name: none}", **recipe: Any) -> Path:
    (folder / "own_search.py").write_text(OWN)
    file = folder / "mine.yaml"
    flow = dump_yaml({**RECIPE, **recipe}).strip().replace("\n", "\n  ")
    file.write_text(FILE.replace("{recipe}", "\n  " + flow).format(sampler=sampler, pruner=pruner))
    return file


def problems(file: Path) -> list[str]:
    with pytest.raises(UserError) as caught:
        load_sweep(file)
    return [problem.removeprefix(f"{file}:") for problem in caught.value.problems]


def line(file: Path, key: str) -> int:
    return next(i for i, text in enumerate(file.read_text().splitlines(), 1) if text.strip().startswith(f"{key}:"))


@pytest.mark.parametrize(
    ("part", "written", "key", "expected"),
    [
        (
            "sampler",
            "{name: tpes}",
            ".name",
            "unknown sampler 'tpes'; choices: tpe, gp, cmaes, random, grid, module:Class; nearest",
        ),
        (
            "pruner",
            "{name: hyperban}",
            ".name",
            "asha, median, percentile, hyperband, none, module:Class; nearest: hyperband",
        ),
        ("sampler", "{startup_trials: 3}", "", "needs a name; choices: tpe, gp"),
        (
            "sampler",
            "{name: 'own_search:'}",
            ".name",
            "must be module:Class, such as my_search:Mine, got 'own_search:'",
        ),
        ("sampler", "{name: absent_module:Mine}", ".name", "there is no module absent_module, neither in "),
        ("sampler", "{name: own_search:Min}", ".name", "has no class 'Min'; choices: Mine, Unseeded; nearest: Mine"),
        ("sampler", "{name: own_search:Unrelated}", ".name", "must be a subclass of optuna.samplers.BaseSampler, got"),
        ("sampler", "{name: own_search:number}", ".name", "must be a subclass of optuna.samplers.BaseSampler, got 3"),
        (
            "sampler",
            "{name: own_search:Picky, patience: 1}",
            ".name",
            "optuna.samplers.BaseSampler, got a subclass of NopPruner",
        ),
        ("pruner", "{name: own_search:Hollow}", ".name", "Hollow lacks methods: prune"),
        ("sampler", "{name: own_search:Unseeded}", ".name", "the constructor of Unseeded must have the argument seed"),
        ("sampler", "{name: own_search:Mine, seed: 3}", ".seed", "is set by the study; remove it"),
        ("sampler", "{name: own_search:Mine, shft: 3}", ".shft", "Mine has no 'shft'; nearest: shift"),
        ("pruner", "{name: own_search:Picky}", ".patience", "is missing: an argument of Picky"),
        (
            "pruner",
            "{name: own_search:Picky, patience: 0}",
            "",
            "refuses its arguments: ValueError: patience must be at least 1",
        ),
        ("pruner", "{name: asha}", "", "needs either min_epochs or min_share"),
        ("pruner", "{name: asha, min_epochs: 2, min_share: 0.1}", "", "needs only one of min_epochs and min_share"),
        (
            "pruner",
            "{name: hyperband, min_epochs: 20}",
            ".min_epochs",
            "must be below recipe.epochs 20, otherwise no trial",
        ),
        ("pruner", "{name: percentile, min_epochs: 20}", ".min_epochs", "must be below recipe.epochs 20"),
        (
            "pruner",
            "{name: asha, min_share: 0.97}",
            ".min_share",
            "must be below 0.950 (20 epochs), otherwise no trial is pruned, got 0.97",
        ),
        ("pruner", "{name: asha, min_share: 1.0}", ".min_share", "must be < 1, got 1.0"),
        ("pruner", "{name: asha, min_epochs: 2, reduction: 1}", ".reduction", "must be >= 2, got 1"),
        ("pruner", "{name: percentile, min_epochs: 2, percentile: 100}", ".percentile", "must be < 100, got 100"),
        ("sampler", "{name: cmaes, population: 1}", ".population", "must be >= 2, got 1"),
        ("sampler", "{name: gp, population: 9}", ".population", "gp has no 'population'; it has: name, startup_trials"),
    ],
)
def test_a_mistake_is_named_with_its_line(tmp_path: Path, part: str, written: str, key: str, expected: str) -> None:
    file = write(tmp_path, **{part: written})
    (problem,) = problems(file)
    assert problem.startswith(f"{line(file, part)}: study.{part}{key}: ")
    assert expected in problem


def test_a_module_that_cannot_be_imported_is_a_sentence_with_its_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken_search.py").write_text("import optuna\n\nvalue = 1 / 0\n")
    file = write(tmp_path, sampler="{name: broken_search:Mine}")
    assert main(["check", str(file)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"{file}:{line(file, 'sampler')}: study.sampler.name: broken_search (")
    assert "cannot be imported: ZeroDivisionError: division by zero (line 3)" in error
    assert "Traceback" not in error


def test_a_module_is_found_beside_the_file_in_the_working_folder_and_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside = write(tmp_path, sampler="{name: own_search:Mine, shift: 0.5}")
    assert load_sweep(beside).study.sampler.model_dump() == {"name": "own_search:Mine", "shift": 0.5}
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "own_here.py").write_text(OWN)
    monkeypatch.chdir(elsewhere)
    assert load_sweep(write(tmp_path, sampler="{name: own_here:Mine}")).study.sampler.name == "own_here:Mine"
    installed = write(
        tmp_path, "{name: 'optuna.samplers:QMCSampler'}", "{name: 'optuna.pruners:ThresholdPruner', lower: 0.2}"
    )
    assert load_sweep(installed).study.pruner.name == "optuna.pruners:ThresholdPruner"


def test_cmaes_and_gp_are_refused_if_they_would_model_nothing(tmp_path: Path) -> None:
    only_choices = {"choice": [1.0, 4.0]}
    fixed = {"name": "sgd", "lr": 0.1}
    method = {"name": "kd", "balance": {"alpha": 0.5}, "temperature": only_choices}
    file = write(tmp_path, "{name: cmaes}", method=method, optimizer=fixed)
    (problem,) = problems(file)
    assert "study.sampler.name: must be another: no number is common to all trials" in problem
    assert problem.endswith("choices: tpe, random, grid; got cmaes")
    load_sweep(write(tmp_path, "{name: gp}", method=method, optimizer=fixed))
    fixed_method = {"name": "kd", "balance": {"alpha": 0.5}, "temperature": 4.0}
    branches = {"choice": [{"name": "sgd", "lr": 0.1}, {"choice": [fixed, {"name": "sgd", "lr": 0.2}]}]}
    load_sweep(write(tmp_path, "{name: gp}", method=fixed_method, optimizer=branches))


def test_cmaes_without_its_package_is_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cmaes", None)  # as if it were not installed
    file = write(tmp_path, "{name: cmaes}")
    assert problems(file) == [
        f"{line(file, 'sampler')}: study.sampler.name: cmaes needs a package that is not installed; pip install cmaes"
    ]


def test_if_methods_are_searched_apart_what_depends_on_the_method_alone_is_modelled() -> None:
    kd = {"name": "kd", "balance": {"alpha": 0.5}, "temperature": {"loguniform": [1, 20]}}
    recipe = {**RECIPE, "method": {"choice": [kd, {"name": "logit_mse", "balance": {"alpha": {"uniform": [0, 1]}}}]}}
    study = {"trials": 12, "sampler": {"name": "cmaes"}}
    sweep = Sweep.from_dict({"recipe": recipe, "study": study}, "apart")
    sampler, parameters = sweep.study.sampler, sweep.parameters
    assert split_by_model(sampler, parameters, {"method": "kd"}) == (
        ["method[kd].temperature"], ["optimizer", "optimizer[adam].lr", "optimizer[sgd].momentum"]
    )  # fmt: skip
    assert split_by_model(sampler, parameters, {"method": "logit_mse"})[0] == ["method[logit_mse].balance.alpha"]
    assert split_by_model(sampler, parameters, {})[0] == []


def test_a_share_is_reached_at_the_first_epoch_that_is_at_least_so_far() -> None:
    for share in (0.1, 0.15, 0.25, 0.3, 0.333, 0.5, 0.7):
        pruner = Asha(name="asha", min_share=share)
        for epochs in (7, 10, 18, 20, 40, 60, 150):
            expected = next(e for e in range(1, epochs + 1) if e / epochs >= share - 1e-9)
            reached = next(e for e in range(1, epochs + 1) if step_of(pruner, e, epochs) >= pruner.first_step)
            assert reached == expected, (share, epochs)


@pytest.mark.parametrize("kind", [Asha, Hyperband])
def test_rungs_are_reduction_times_later_and_below_the_last_epoch(kind: Any) -> None:
    assert kind(name=kind.model_fields["name"].annotation.__args__[0], min_share=0.05).rungs(20) == [1, 3, 9]
    name = kind.model_fields["name"].annotation.__args__[0]
    assert kind(name=name, min_share=0.05).rungs(60) == [3, 9, 27]
    assert kind(name=name, min_epochs=2).rungs(18) == [2, 6]
    assert kind(name=name, min_epochs=2).rungs(60) == [2, 6, 18, 54]


def test_a_median_may_prune_at_every_epoch_but_the_last() -> None:
    assert Median(name="median", min_share=0.5).rungs(6) == [3, 4, 5]


def test_median_cannot_start_at_a_share_if_trials_differ_in_length(tmp_path: Path) -> None:
    file = write(tmp_path, pruner="{name: median, min_share: 0.2}", epochs={"choice": [10, 20]})
    (problem,) = problems(file)
    assert "study.pruner.min_share: cannot be used if recipe.epochs is searched" in problem
    assert load_sweep(write(tmp_path, pruner="{name: asha, min_share: 0.2}", epochs={"choice": [10, 20]}))


def test_a_class_in_a_dict_needs_no_file() -> None:
    study = {"trials": 4, "sampler": {"name": "optuna.samplers:RandomSampler"}}
    located = locate({"recipe": RECIPE, "study": study}, "here")
    assert Sweep.from_dict(located.data, "here").study.sampler.name == "optuna.samplers:RandomSampler"
