"""Trade-offs: what the sampler sees, how trials are pruned, and small studies of three student widths."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from studies import carry_out, decisions, events, open_study, plans, sweep_file
from test_search import Driver, sweep_of

from kdtrain.cli import check
from kdtrain.config.sweep import Sweep, load_sweep
from kdtrain.config.teacher import Student
from kdtrain.executors.local import execute
from kdtrain.models.build import network_size
from kdtrain.study.cost import trainings
from kdtrain.study.front import Costs
from kdtrain.study.search import Search
from kdtrain.study.tradeoff import measure_costs, student_choices, student_recipes

WIDTHS = ["lenet5_half", "lenet5_student", "lenet5_teacher"]
STUDENTS = {"student": {"model": {"choice": WIDTHS}}}
TRADEOFF = {"tradeoff": {"cost": "parameters"}, "published": None}
TPE = {"name": "tpe", "startup_trials": 4}
ASHA = {"name": "asha", "min_epochs": 1, "reduction": 2}
RECORDER = """
import optuna

SEEN = []


class Recorder(optuna.samplers.RandomSampler):
    def sample_independent(self, study, trial, name, distribution):
        SEEN[:] = [(t.state.name, t.params["student.model"], t.values) for t in study.trials if t.number < trial.number]
        return super().sample_independent(study, trial, name, distribution)
"""


def costs_of(sweep: Sweep) -> Costs:
    recipes = student_recipes(sweep)
    sizes = {key: network_size(recipe.student, (1, 16, 16), 10) for key, recipe in recipes.items()}
    return Costs(student_choices(sweep), {key: float(size[0]) for key, size in sizes.items()})


def search_of(sweep: Sweep) -> Search:
    return Search("search", sweep, costs=costs_of(sweep))


@pytest.mark.parametrize(
    ("sampler", "pruner"),
    [
        (TPE, ASHA),
        (TPE, {"name": "hyperband", "min_epochs": 1, "reduction": 2}),
        ({"name": "random"}, {"name": "median", "startup_trials": 2, "min_epochs": 2}),
        ({"name": "optuna.samplers:NSGAIISampler", "population_size": 4}, ASHA),
    ],
    ids=["tpe", "hyperband", "random", "nsga"],
)
def test_a_tradeoff_repeats_itself_and_goes_on_after_a_kill(sampler: dict[str, Any], pruner: dict[str, Any]) -> None:
    sweep = sweep_of(STUDENTS, sampler=sampler, pruner=pruner, **TRADEOFF)
    undisturbed = Driver(search_of(sweep)).run()
    assert Driver(search_of(sweep), seed=1).run() == undisturbed, "trials end in another order"
    for ends in (3, 14, 25):
        killed, again = Driver(search_of(sweep)), Driver(search_of(sweep), seed=2)
        killed.run(kill_after=ends)
        again.journal = killed.journal
        assert again.run() == undisturbed
    states = [row[2] for row in undisturbed]
    assert states.count("pruned") > 2
    assert states.count("failed") > 0


def test_gaussian_process_and_grid_serve_a_tradeoff_too() -> None:
    for sampler in ({"name": "gp", "startup_trials": 3}, {"name": "grid", "points": 2}):
        sweep = sweep_of(STUDENTS, sampler=sampler, pruner=ASHA, trials=8, **TRADEOFF)
        assert Driver(search_of(sweep)).run(8) == Driver(search_of(sweep), seed=1).run(8)


def test_the_sampler_sees_complete_trials_only_with_objective_and_cost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pruned trial has its last objective, a failed one the worst of both; one that fails first is left out."""
    (tmp_path / "recorder.py").write_text(RECORDER)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "recorder", None)  # so that the module is removed again
    monkeypatch.delitem(sys.modules, "recorder")
    sweep = sweep_of(STUDENTS, sampler={"name": "recorder:Recorder"}, batch=1, trials=6, **TRADEOFF)
    search, costs = search_of(sweep), costs_of(sweep)
    told: list[tuple[str, float | None, list[float]]] = [
        ("failed", None, [0.1]),
        ("complete", 0.8, [0.6, 0.8, 0.7]),
        ("pruned", 0.5, [0.5, 0.4]),
        ("failed", None, [0.9]),
        ("complete", 0.9, [0.9]),
    ]
    models = []
    for number in range(6):
        values = search.suggest(number)
        search.plan(number, values)
        models.append(values["student.model"])
        if number < len(told):
            state, value, accuracies = told[number]
            rows: list[Any] = [{"epoch": i, "val/accuracy": each} for i, each in enumerate(accuracies, 1)]
            search.tell(number, state, value, rows)
    cost = {model: costs.of({"student.model": model}) for model in WIDTHS}
    worst = [0.4, max(cost[str(model)] for model in models[1:3])]
    seen = sys.modules["recorder"].SEEN
    assert seen == [
        ("COMPLETE", models[1], [0.8, cost[str(models[1])]]),
        ("COMPLETE", models[2], [0.4, cost[str(models[2])]]),
        ("COMPLETE", models[3], worst),
        ("COMPLETE", models[4], [0.9, cost[str(models[4])]]),
    ]


def test_a_trial_is_pruned_by_comparison_with_its_own_band_of_costs_only() -> None:
    """Whatever the largest student reaches, no trial of the others ends earlier or later for it."""
    sweep = sweep_of(STUDENTS, sampler={"name": "random"}, pruner=ASHA, **TRADEOFF)

    def stops(of_the_largest: Callable[[float], float]) -> dict[int, int | None]:
        search, found = search_of(sweep), {}
        for number in range(30):
            values = search.suggest(number)
            search.plan(number, values)
            lr, largest = float(values["optimizer.lr"]), values["student.model"] == "lenet5_teacher"  # type: ignore[arg-type]
            quality = of_the_largest(lr) if largest else lr
            rows: list[Any] = [{"epoch": epoch, "val/accuracy": quality} for epoch in range(1, 5)]
            stop = search.pruned_at(number, rows[:-1])
            search.tell(number, "pruned" if stop else "complete", quality, rows[:stop])
            if not largest:
                found[number] = stop
        return found

    low, high = stops(lambda lr: lr - 1), stops(lambda lr: lr + 1)
    assert low == high
    assert {None, 1} <= set(low.values())


def fronts(study: Any) -> dict[str, Any]:
    return {row["race"]: row for row in events(study) if row["event"] == "front"}


def test_a_study_confirms_both_fronts_and_goes_on_after_a_kill(tmp_path: Path) -> None:
    settings = {"recipe": STUDENTS, "study": {**TRADEOFF, "trials": 9, "batch": 3, "pruner": ASHA}}
    file = sweep_file(tmp_path, **settings)  # type: ignore[arg-type]
    study = open_study(file, tmp_path / "whole")
    execute(study)
    found = fronts(study)
    points = {race: found[race]["points"] for race in ("baselines", "search")}
    for race, own in points.items():
        ends = {row["number"]: row for row in events(study) if row["event"] == "ended" and row["stage"] == race}
        sizes = study.journal.study_record()["models"]
        number_model = {row["number"]: row["values"]["student.model"] for row in plans(study, race)}
        complete = {n: end["value"] for n, end in ends.items() if end["state"] == "complete"}
        costs = {n: sizes[number_model[n]]["parameters"] for n in complete}
        for point in own:
            value, cost = point["value"], point["cost"]
            assert not any(costs[n] <= cost and complete[n] > value for n in complete)
            assert costs[int(point["candidate"].split()[1])] == cost
        assert [point["cost"] for point in own] == sorted({point["cost"] for point in own})
    confirmed = {(row["candidate"], row["baseline"]) for row in plans(study, "confirm")}
    winner = next(row for row in events(study) if row["event"] == "winner")
    assert winner["candidate"] == points["search"][-1]["confirmed"]
    assert {key for key, _ in confirmed} == set(winner["confirmed"])
    assert not plans(study, "select")
    assert len(plans(study, "confirm")) <= trainings(study.sweep)["confirm"]
    assert study.search.costs is not None

    for jobs, epoch in ((12, 2), (20, 1)):
        again = tmp_path / f"killed{jobs}"
        carry_out(open_study(file, again), jobs=jobs, cut_at_epoch=epoch)
        continued = open_study(file, again)
        carry_out(continued)
        assert decisions(continued) == decisions(study)
        assert {race: row["points"] for race, row in fronts(continued).items()} == {
            race: row["points"] for race, row in found.items()
        }


def test_the_cost_is_the_number_of_parameters_or_the_flops_of_an_image(tmp_path: Path) -> None:
    """The head belongs to the student too."""
    for i, cost in enumerate(("parameters", "flops")):
        study = open_study(
            sweep_file(tmp_path, recipe=STUDENTS, study={**TRADEOFF, "tradeoff": {"cost": cost}}), tmp_path / cost
        )
        assert list(measure_costs(study)) == []
        for costs in (study.search.costs, study.baselines.costs):
            assert costs is not None
            for model in WIDTHS:
                size = network_size(Student(model=model), (1, 16, 16), 10)
                assert costs.of({"student.model": model, "optimizer.lr": 0.01}) == size[i]


def test_a_student_differs_from_another_in_model_or_head_only(tmp_path: Path) -> None:
    student = {
        "model": "mobilenetv2",
        "weights": None,
        "head": {"choice": ["linear", "hidden"]},
        "dropout": {"choice": [0.1, 0.3]},
    }
    file = sweep_file(tmp_path, recipe={"student": student}, study=TRADEOFF)
    costs = costs_of(load_sweep(file))
    at = [
        costs.of({"student.head": head, "student.dropout": dropout})
        for head in ("linear", "hidden")
        for dropout in (0.1, 0.3)
    ]
    assert at[0] == at[1] < at[2] == at[3]
    band = [costs.band({"student.head": head, "student.dropout": 0.1}) for head in ("linear", "hidden")]
    assert band == [0, 1]


def test_a_latency_is_measured_once_for_each_student_and_kept(tmp_path: Path) -> None:
    study = {"tradeoff": {"cost": "latency_ms"}, "published": None, "trials": 3, "batch": 3, "pruner": None}
    file = sweep_file(tmp_path, recipe=STUDENTS, study=study)
    first = open_study(file, tmp_path / "results")
    jobs = carry_out(first, jobs=8)  # three checks, a teacher, three latencies, a trial
    assert [job.kind for job in jobs].count("latency") == len(WIDTHS)
    measured = {row["model"]: row["latency_ms"] for row in events(first) if row["event"] == "latency"}
    assert set(measured) == set(WIDTHS)
    assert all(0 < value < 1_000 for value in measured.values())
    again = open_study(file, tmp_path / "results")
    assert not [job for job in carry_out(again) if job.kind == "latency"]
    points = fronts(again)["search"]["points"]
    assert {point["cost"] for point in points} <= set(measured.values())


def test_two_widths_of_one_model_have_sizes_and_latencies_of_their_own(tmp_path: Path) -> None:
    recipe = {
        "teacher": {"model": "mlp", "hidden": [40, 30], "epochs": 1, "optimizer": {"name": "adam", "lr": 0.01}},
        "student": {"model": "mlp", "hidden": {"choice": [[30], [20]]}},
    }
    study = {"tradeoff": {"cost": "latency_ms"}, "published": None, "trials": 1, "batch": 1, "pruner": None}
    opened = open_study(sweep_file(tmp_path, recipe=recipe, study=study), tmp_path / "results")
    sizes = opened.journal.description["models"]
    parameters = {"mlp 40-30": 257 * 40 + 41 * 30 + 31 * 10, "mlp 30": 257 * 30 + 310, "mlp 20": 257 * 20 + 210}
    assert {name: size["parameters"] for name, size in sizes.items()} == parameters
    carry_out(opened, jobs=6)
    measured = {row["model"]: row["latency_ms"] for row in events(opened) if row["event"] == "latency"}
    assert set(measured) == {"mlp 30", "mlp 20"}


def test_the_most_accurate_baseline_is_chosen_before_the_test_split_is_read(tmp_path: Path) -> None:
    study = open_study(
        sweep_file(tmp_path, recipe=STUDENTS, study={**TRADEOFF, "trials": 3, "pruner": None}), tmp_path / "results"
    )
    carry_out(study)
    order = [row["event"] for row in events(study)]
    assert order.index("front") < order.index("winner") < order.index("tested")


@pytest.mark.parametrize(
    ("recipe", "study", "place", "text"),
    [
        ({"student": {"model": "lenet5_student"}}, {}, "study.tradeoff", "needs at least 2 networks"),
        (
            STUDENTS,
            {"tradeoff": {"cost": "watts"}},
            "study.tradeoff.cost",
            "must be one of parameters, flops, latency_ms, got 'watts'",
        ),
        (STUDENTS, {"select": {"trainings": 40}}, "study.select.trainings", "has no effect with study.tradeoff"),
        (STUDENTS, {"select": {"best_of_each": "student.model"}}, "study.select.best_of_each", "has no effect"),
        (STUDENTS, {"select": {"equal_trials": False}}, "study.select.equal_trials", "has no effect"),
        (STUDENTS, {"sampler": {"name": "cmaes"}}, "study.sampler.name", "must be a sampler for two objectives"),
        (STUDENTS, {"sampler": {"name": "optuna.samplers:CmaEsSampler"}}, "study.sampler.name", "for two objectives"),
    ],
)
def test_what_a_tradeoff_cannot_do_is_refused_at_its_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    recipe: dict[str, Any],
    study: dict[str, Any],
    place: str,
    text: str,
) -> None:
    file = sweep_file(tmp_path, recipe=recipe, study={**TRADEOFF, **study})
    assert check.main([str(file)]) == 2
    [problem] = capsys.readouterr().err.splitlines()
    line, found = problem.removeprefix(f"{file}:").split(": ", 1)
    assert line.isdigit()
    assert found.startswith(place)
    assert text in found
