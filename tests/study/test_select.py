"""The stage select on real trainings of a few dozen digits."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from studies import carry_out, decisions, events, open_study, plans, sweep_file

from kdtrain.config.sweep import load_sweep
from kdtrain.errors import NoResult, UserError
from kdtrain.executors.local import run_job
from kdtrain.study.confirm import FIRST_CONFIRMING_SEED
from kdtrain.study.jobs import Broken
from kdtrain.study.select import FIRST_RACING_SEED
from kdtrain.study.study import Study
from kdtrain.trials.outcome import outcome_row

KD = {"name": "kd", "balance": {"weight": {"loguniform": [0.1, 10]}}}
METHODS = {"choice": [{**KD, "temperature": {"uniform": [1, 8]}}, {"name": "logit_mse", "balance": {"weight": 1.0}}]}
UNPUBLISHED: dict[str, Any] = {"published": None, "pruner": None}


def told(study: Study, event: str, race: str = "search") -> list[dict[str, Any]]:
    return [row for row in events(study) if row["event"] == event and row["race"] == race]


def copied(finished: Study, tmp_path: Path, study: Any = None, **options: Any) -> Study:
    results = shutil.copytree(finished.workspace.store.results, tmp_path / "results")
    return open_study(sweep_file(tmp_path, study=study), results, **options)


def test_racing_seeds_are_neither_the_searchs_nor_confirming_ones_and_alike_for_all(finished: Study) -> None:
    rows = plans(finished, "select")
    by_round: dict[int, set[int]] = {}
    for row in rows:
        by_round.setdefault(row["round"], set()).add(row["seed"])
    assert {round_: FIRST_RACING_SEED + round_ - 1 for round_ in by_round} == {
        round_: seed for round_, (seed,) in by_round.items()
    }
    assert min(FIRST_RACING_SEED, FIRST_CONFIRMING_SEED) > 999_999
    assert FIRST_RACING_SEED > FIRST_CONFIRMING_SEED + 1_000 * 999_999 + 999
    assert not {row["trial_id"] for row in rows} & {row["trial_id"] for row in plans(finished, "confirm")}


def test_the_best_trials_and_the_published_ones_race_with_equal_trainings_for_the_baselines(finished: Study) -> None:
    complete = {
        number: end["value"] for number, end in finished.journal.ends("search").items() if end["state"] == "complete"
    }
    best = sorted(complete, key=lambda number: (-complete[number], number))[:2]
    first = [
        row["source"]["number"] for row in plans(finished, "select") if row["race"] == "search" and row["round"] == 1
    ]
    assert {0, *best} >= set(first) >= {0}
    assert len(first) >= 2
    (search,), (alone,) = told(finished, "selected"), told(finished, "selected", "baselines")
    assert search["trainings"] == alone["trainings"] == 3 * len(first)
    for row in (search, alone):
        planned = [each for each in plans(finished, "select") if each["race"] == row["race"]]
        assert row["spent"] == len(planned) <= row["trainings"]
        assert sum(row["probabilities"].values()) == pytest.approx(1)


def test_the_journal_tells_each_round_with_its_means_and_who_was_dropped(finished: Study) -> None:
    rounds = told(finished, "round")
    assert [row["round"] for row in rounds] == list(range(1, told(finished, "selected")[0]["rounds"] + 1))
    for row in rounds:
        for racer in row["racers"]:
            runs = [each for each in plans(finished, "select") if each["candidate"] == racer["candidate"]]
            ends = finished.journal.ends("select")
            values = [ends[each["number"]]["value"] for each in runs if each["round"] <= row["round"]]
            assert racer["seeds"] == len(values)
            assert racer["fresh"] == pytest.approx(sum(values) / len(values))  # type: ignore[arg-type]
        assert all(racer["dropped"] is None or racer["dropped"] <= row["round"] for racer in row["racers"])


@pytest.mark.parametrize("after", [1, 2, 4, pytest.param(6, marks=pytest.mark.slow)])
def test_a_race_that_is_killed_decides_the_same(finished: Study, after: int, tmp_path: Path) -> None:
    """`after` racing trainings have ended, and another one is in mid-training."""
    before = sum(row["stage"] in ("smoke", "teacher", "baselines", "search") for row in events(finished)
                 if row["event"] == "planned")  # fmt: skip
    file = sweep_file(tmp_path)
    ran = carry_out(open_study(file, tmp_path / "results"), jobs=before + after, cut_at_epoch=2)
    assert ran[-1].stage == "select"
    rest = open_study(file, tmp_path / "results")
    carry_out(rest)
    assert decisions(rest) == decisions(finished)
    for event in ("round", "selected"):
        for race in ("search", "baselines"):
            assert [{**row, "time": 0} for row in told(rest, event, race)] == [
                {**row, "time": 0} for row in told(finished, event, race)
            ]


def test_a_broken_training_stops_the_race_and_the_next_start_goes_on_with_its_round(tmp_path: Path) -> None:
    file = sweep_file(tmp_path, study=UNPUBLISHED, resources={"retries": 0})
    study = open_study(file, tmp_path / "results")

    def lose_a_training() -> None:
        for job in study.jobs():
            assert job is not None
            is_lost = job.stage == "select" and job.number == 1
            study.ended(job, Broken("the node was lost") if is_lost else run_job(study, job))

    with pytest.raises(NoResult, match=r"select: a round cannot be decided without all its trainings: 1 broken"):
        lose_a_training()
    assert not told(study, "selected")
    again = open_study(file, tmp_path / "results")
    assert {job.key for job in carry_out(again) if job.stage == "select"} >= {"select-1"}
    assert events(again)[-1]["event"] == "finished"


def test_one_complete_trial_wins_without_a_race(tmp_path: Path) -> None:
    study = open_study(sweep_file(tmp_path, study=UNPUBLISHED | {"trials": 1}), tmp_path / "results")
    carry_out(study)
    assert plans(study, "select") == []
    for race in ("search", "baselines"):
        (row,) = told(study, "selected", race)
        assert (row["winner"], row["reason"], row["rounds"]) == (f"{race} 0", "one complete trial", 0)


def test_the_best_of_each_method_is_confirmed_and_each_has_as_many_trials(tmp_path: Path) -> None:
    file = sweep_file(tmp_path, recipe={"method": METHODS}, study=UNPUBLISHED)
    study = open_study(file, tmp_path / "results")
    carry_out(study)
    tried = [row["values"]["method"] for row in plans(study, "search")]
    assert tried.count("kd") == tried.count("logit_mse") == 3
    (row,) = told(study, "selected")
    assert set(row["leaders"]) == {"kd", "logit_mse"}
    assert row["without"] == []
    confirmed = {row["candidate"] for row in plans(study, "confirm")}
    assert confirmed == {"best kd", "best logit_mse", "baseline 1"}
    winner = next(row for row in events(study) if row["event"] == "winner")
    option = next(option for option, key in row["leaders"].items() if key == row["winner"])
    assert winner["candidate"] == f"best {option}"


def test_the_baselines_of_each_student_model_race_among_themselves(tmp_path: Path) -> None:
    models = {"student": {"model": {"choice": ["lenet5_student", "lenet5_teacher"]}}, "epochs": 1}
    small = {**UNPUBLISHED, "confirm": {"seeds": 1}}
    study = open_study(sweep_file(tmp_path, recipe=models, study=small), tmp_path / "results")
    carry_out(study)
    for model in ("lenet5_student", "lenet5_teacher"):
        (last,) = told(study, "selected", f"baselines {model}")
        assert last["winner"] in last["probabilities"]
        for row in told(study, "round", f"baselines {model}"):
            assert {racer["candidate"] for racer in row["racers"]} == last["probabilities"].keys()


def test_a_race_of_baselines_keeps_its_name_when_further_trials_bring_another_student_model(tmp_path: Path) -> None:
    models = {"student": {"model": {"choice": ["lenet5_student", "lenet5_teacher"]}}, "epochs": 1}
    small = {**UNPUBLISHED, "confirm": {"seeds": 1}, "batch": 1}
    for trials in (1, 6):
        study = open_study(sweep_file(tmp_path, recipe=models, study={**small, "trials": trials}), tmp_path / "results")
        carry_out(study)
    races = {row["race"] for row in events(study) if row["event"] == "selected"}
    assert races == {"search", "baselines lenet5_student", "baselines lenet5_teacher"}


def test_baselines_of_several_student_models_have_fresh_seeds_each(tmp_path: Path) -> None:
    """Each model has at least two candidates, so there can be more of them than of the distilled students."""
    models = ["lenet5_student", "lenet5_teacher"]
    recipe = {"student": {"model": {"choice": models}}, "epochs": 1}
    small = {**UNPUBLISHED, "confirm": {"seeds": 1}, "trials": 8, "select": {"candidates": 2}}
    study = open_study(sweep_file(tmp_path, recipe=recipe, study=small), tmp_path / "results")
    carry_out(study)
    ends = {row["race"]: row for row in events(study) if row["event"] == "selected"}
    candidates = sum(len(row["probabilities"]) for race, row in ends.items() if race != "search")
    assert candidates == 4
    assert ends["search"]["trainings"] == 3 * candidates
    assert all(ends[f"baselines {model}"]["trainings"] == 3 * 2 for model in models)
    with pytest.raises(UserError, match=r"study\.select\.trainings: must be >= 8, 2 for each of up to 4 candidates"):
        load_sweep(sweep_file(tmp_path, recipe=recipe, study={**small, "select": {"candidates": 2, "trainings": 7}}))


def test_one_stage_alone(finished: Study, tmp_path: Path) -> None:
    """It does what is missing of that stage, and refuses if an earlier one is not complete."""

    def only(stage: str, results: Path) -> Study:
        study = open_study(sweep_file(tmp_path), results)
        return Study(study.sweep, study.workspace, study.journal, stage)

    with pytest.raises(UserError, match=r"--stage confirm: teacher-0 has not ended yet; run the sweep without --stage"):
        carry_out(only("confirm", tmp_path / "new"))
    study = only("search", copied(finished, tmp_path).workspace.store.results)
    lost = plans(study, "search")[2]["trial_id"]
    shutil.rmtree(study.workspace.store.trial(lost).path)
    assert [job.key for job in carry_out(study)] == ["search-2"]
    confirming = [row["trial_id"] for row in plans(study, "confirm")]
    shutil.rmtree(study.workspace.store.trial(confirming[1]).path)
    assert [job.key for job in carry_out(only("confirm", tmp_path / "results"))] == ["confirm-1", "test-0"]


def test_seeds_may_grow_and_the_journal_says_so_and_they_may_go_back_to_what_is_trained(
    finished: Study, tmp_path: Path
) -> None:
    more = {"confirm": {"seeds": 4}}
    grown = copied(finished, tmp_path, more)  # its number is not planned yet, so the file may still be put right
    back = open_study(sweep_file(tmp_path), tmp_path / "results")
    assert back.sweep.study.confirm.seeds == 2
    grown = open_study(sweep_file(tmp_path, study=more), tmp_path / "results")
    before = {row["trial_id"] for row in plans(finished, "confirm")}
    ran = [job for job in carry_out(grown) if job.stage == "confirm"]
    assert {job.recipe.seed for job in ran} == {FIRST_CONFIRMING_SEED + 2, FIRST_CONFIRMING_SEED + 3}
    assert {row["trial_id"] for row in plans(grown, "confirm")} == before | {job.trial_id for job in ran}
    (row,) = [row for row in events(grown) if row["event"] == "seeds_grown"]
    assert (row["from"], row["to"]) == (2, 4)
    both = open_study(sweep_file(tmp_path, study={**more, "confirm": {"seeds": 5}}), tmp_path / "results", trials=8)
    carry_out(both)
    told = [(row["event"], row["from"], row["to"]) for row in events(both) if row["event"].endswith("_grown")]
    assert told == [("seeds_grown", 2, 4), ("trials_grown", 6, 8)], "more trials may have changed the winner"
    with pytest.raises(UserError, match=r"study.confirm.seeds must be >= 5, the number that has been trained, got 2"):
        open_study(sweep_file(tmp_path), tmp_path / "results", trials=8)


def test_a_number_of_trials_given_by_mistake_can_be_taken_back(finished: Study, tmp_path: Path) -> None:
    many = copied(finished, tmp_path, trials=300)
    carry_out(many, jobs=2)
    back = open_study(sweep_file(tmp_path), tmp_path / "results", trials=8)
    carry_out(back)
    assert len(plans(back, "search")) == 8


def test_a_study_of_an_earlier_version_goes_on(finished: Study, tmp_path: Path) -> None:
    """It has `confirm.best` and no stage select; what it has trained is used."""
    study = copied(finished, tmp_path)
    kept = [
        row
        for row in events(study)
        if row["event"] in ("planned", "ended") and row["stage"] not in ("select", "confirm")
    ]
    study.journal.path.write_text("".join(json.dumps(row) + "\n" for row in kept))
    path = study.journal.folder / "study.json"
    about = json.loads(path.read_text())
    about["study"]["confirm"]["best"] = 2
    del about["study"]["select"]
    del about["digest"]
    path.write_text(json.dumps(about | {"schema": 1}))
    file = sweep_file(tmp_path, study={"select": {"candidates": 8}})
    ran = carry_out(open_study(file, tmp_path / "results"))
    assert {job.stage for job in ran} <= {"select", "confirm", "test", "pictures"}
    with pytest.raises(UserError, match=r"study.select.candidates was 8, is 2"):
        open_study(sweep_file(tmp_path), tmp_path / "results")


def test_a_student_whose_baselines_all_diverge_in_the_race_is_trained_alone_at_the_winners_values(
    tmp_path: Path,
) -> None:
    small = {**UNPUBLISHED, "confirm": {"seeds": 1}}
    study = open_study(sweep_file(tmp_path, study=small), tmp_path / "results")
    for job in study.jobs():
        assert job is not None
        outcome = run_job(study, job) if job.kind != "pictures" else None
        if job.stage == "select" and job.details["race"] == "baselines":
            trial = study.workspace.store.trial(job.trial_id)
            trial.write_outcome(outcome_row("failed", "epoch 1, after step 0: loss is nan", trial))
        study.ended(job, outcome)
    (row,) = told(study, "selected", "baselines")
    assert (row["winner"], row["leaders"]) == (None, {})
    winner = next(row for row in events(study) if row["event"] == "winner")
    by_candidate = {row["candidate"]: row["values"] for row in plans(study, "confirm")}
    best, baseline = by_candidate[winner["candidate"]], by_candidate[winner["baseline"]]
    assert baseline == {name: best[name] for name in baseline}
    assert baseline
