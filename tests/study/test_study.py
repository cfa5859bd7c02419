"""The stages of a study and what they promise, carried out without Ray on real trainings of a few dozen digits."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import optuna
import pytest
import safetensors.torch
import torch
import yaml
from studies import TREE, carry_out, decisions, events, open_study, plans, rewrite, sweep_file, with_trials_of

from kdtrain.config.sweep import load_recipe
from kdtrain.errors import UserError
from kdtrain.executors.local import execute, run_job
from kdtrain.study.confirm import FIRST_CONFIRMING_SEED
from kdtrain.study.jobs import Broken, Job
from kdtrain.study.journal import StudyJournal
from kdtrain.study.study import Study
from kdtrain.training.trainer import train
from kdtrain.trials.store import STUDY_SCHEMA


def outcomes(study: Study, stage: str) -> list[dict[str, Any]]:
    found = [study.workspace.store.trial(row["trial_id"]).outcome() for row in plans(study, stage)]
    assert all(found)
    return found  # type: ignore[return-value]


def recipe_of(study: Study, row: dict[str, Any]) -> dict[str, Any]:
    return study.workspace.store.trial(row["trial_id"]).recipe() or {}


def winner_of(study: Study) -> dict[str, Any]:
    return next(row for row in events(study) if row["event"] == "winner")


def mean_accuracies(study: Study) -> dict[str, float]:
    """Return each candidate's sum of val/accuracy over its confirming seeds."""
    values: dict[str, list[float]] = {}
    for plan, outcome in zip(plans(study, "confirm"), outcomes(study, "confirm"), strict=True):
        values.setdefault(plan["candidate"], []).append(outcome["best"]["val/accuracy"])
    return {candidate: math.fsum(own) for candidate, own in values.items()}


def copied(finished: Study, tmp_path: Path, **options: Any) -> Study:
    """Open the finished study in a copy of its folder."""
    results = shutil.copytree(finished.workspace.store.results, tmp_path / "results")
    return open_study(sweep_file(tmp_path), results, **options)


def test_stages_follow_one_another(finished: Study) -> None:
    stages = [row["stage"] for row in events(finished) if row["event"] == "planned"]
    assert list(dict.fromkeys(stages)) == ["smoke", "teacher", "baselines", "search", "select", "confirm", "pictures"]
    assert events(finished)[-1]["event"] == "finished"
    assert finished.journal.files.has("pictures.npz")


def test_baselines_get_the_budget_of_the_search_without_a_teacher(finished: Study) -> None:
    assert len(plans(finished, "baselines")) == len(plans(finished, "search")) == 6
    for row in plans(finished, "baselines"):
        assert recipe_of(finished, row)["teacher"] is None
        assert set(row["values"]) == {"optimizer.lr"}


def test_published_points_come_first_in_both_searches_and_are_never_pruned(finished: Study) -> None:
    assert plans(finished, "search")[0]["values"] == {"method.balance.alpha_ce": 0.5, "optimizer.lr": 0.01}
    assert plans(finished, "baselines")[0]["values"] == {"optimizer.lr": 0.01}
    assert [row["published"] for row in plans(finished, "search")] == [True, *[False] * 5]
    assert outcomes(finished, "search")[0]["state"] == "complete"


def test_some_trials_are_pruned_and_their_outcome_names_the_epoch(finished: Study) -> None:
    rows = [outcome for _, outcome in pruned(finished)]
    assert rows
    assert all(row["reason"] == f"stopped by asha after epoch {row['epochs']}" for row in rows)
    assert all(row["epochs"] < 4 and row["test"] is None for row in rows)


def test_confirming_seeds_are_disjoint_from_the_search_and_alike_for_every_candidate(finished: Study) -> None:
    seeds: dict[str, list[int]] = {}
    for row in plans(finished, "confirm"):
        seeds.setdefault(row["candidate"], []).append(row["seed"])
    assert set(seeds) == {"best", "published 1", "baseline 1"}
    assert all(own == [FIRST_CONFIRMING_SEED, FIRST_CONFIRMING_SEED + 1] for own in seeds.values())
    for row in plans(finished, "search"):
        assert recipe_of(finished, row)["recipe"]["seed"] == 0


def test_test_split_is_read_by_confirming_runs_and_teachers_only(finished: Study) -> None:
    for stage, reads in [
        ("teacher", True),
        ("baselines", False),
        ("search", False),
        ("select", False),
        ("confirm", True),
    ]:
        assert all((row["test"] is not None) == reads for row in outcomes(finished, stage)), stage
        for row in plans(finished, stage):
            folder = finished.workspace.store.trial(row["trial_id"])
            assert folder.weights.exists() == folder.predictions.exists() == reads


def test_the_winner_is_fixed_before_anything_is_confirmed(finished: Study) -> None:
    told = [(row["event"], row.get("stage")) for row in events(finished)]
    assert told.index(("winner", None)) < told.index(("planned", "confirm"))
    assert [event for event, _ in told].count("winner") == 1
    (selected,) = [row for row in events(finished) if row["event"] == "selected" and row["race"] == "search"]
    winner = winner_of(finished)
    assert (winner["candidate"], winner["baseline"]) == ("best", "baseline 1")
    first = next(row for row in plans(finished, "confirm") if row["candidate"] == "best")
    assert f"search {first['source']['number']}" == selected["winner"]
    assert set(winner["confirmed"]) == {"best", "published 1", "baseline 1"}


def test_best_yaml_is_the_winner_with_its_first_seed(finished: Study) -> None:
    recipe = load_recipe(finished.journal.folder / "best.yaml")
    assert recipe_of(finished, winner_of(finished))["recipe"] == recipe.model_dump(mode="json")
    assert recipe.seed == FIRST_CONFIRMING_SEED


def test_opening_a_finished_study_runs_nothing_and_records_nothing_new(finished: Study, tmp_path: Path) -> None:
    before = finished.journal.path.read_bytes()
    again = open_study(sweep_file(tmp_path), finished.workspace.store.results)
    assert carry_out(again) == []
    assert [row["event"] for row in events(again)][-1] == "finished"
    assert again.journal.path.read_bytes() == before


def test_pictures_compare_the_best_distilled_recipe_with_the_student_alone(finished: Study) -> None:
    (job,) = plans(finished, "pictures")
    best = max(("best", "published 1"), key=mean_accuracies(finished).__getitem__)
    first = {row["candidate"]: row["trial_id"] for row in reversed(plans(finished, "confirm"))}
    assert job["compared"] == [first[best], first["baseline 1"]]
    recipes = [recipe_of(finished, {"trial_id": trial_id})["recipe"] for trial_id in job["compared"]]
    assert {recipe["seed"] for recipe in recipes} == {FIRST_CONFIRMING_SEED}


@pytest.mark.parametrize(
    "jobs", [2, 5, 12, 17, *(pytest.param(jobs, marks=pytest.mark.slow) for jobs in (1, 4, 6, 8, 9, 11, 13, 14))]
)
def test_a_study_cut_off_anywhere_ends_as_the_undisturbed_one(finished: Study, tmp_path: Path, jobs: int) -> None:
    file = sweep_file(tmp_path)
    ran = carry_out(open_study(file, tmp_path / "results"), jobs=jobs, cut_at_epoch=2)
    rest = open_study(file, tmp_path / "results")
    ran_again = carry_out(rest)
    assert decisions(rest) == decisions(finished)
    ended_before = {job.key for job in ran[:-1]}
    assert not ended_before & {job.key for job in ran_again}


def test_checkpoints_of_a_training_that_was_killed_at_its_very_end_are_removed(finished: Study, tmp_path: Path) -> None:
    """The kill came between the outcome and their removal."""
    study = copied(finished, tmp_path)
    folder = study.workspace.store.trial(plans(finished, "search")[0]["trial_id"])
    (folder.path / "checkpoint-000000001-0.safetensors").write_bytes(b"left")
    carry_out(study)
    assert not folder.has_checkpoints()


def test_pruning_looks_at_earlier_batches_only(finished: Study, tmp_path: Path) -> None:
    """With one batch for all trials there is nothing to compare with, so nothing is pruned."""
    study = open_study(sweep_file(tmp_path, study={"batch": 6}), tmp_path / "results")
    for plan, _ in pruned(finished):
        rows = finished.workspace.store.trial(plan["trial_id"]).epochs()
        study.search.plan(plan["number"], plan["values"])
        assert study.search.pruned_at(plan["number"], rows) is None


def test_values_that_were_planned_for_other_code_or_images_are_suggested_anew(finished: Study, tmp_path: Path) -> None:
    rows = events(finished)
    for row in rows:
        if row["event"] == "planned" and row["stage"] == "search" and row["number"] >= 3:
            row["values"] = row["values"] | {"optimizer.lr": 0.5 * row["values"]["optimizer.lr"]}  # of other results
            row["trial_id"] = "0123456789abcdef"
    study = with_trials_of(finished, tmp_path / "results", sweep_file(tmp_path))
    study.journal.path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    again = open_study(sweep_file(tmp_path), tmp_path / "results")
    assert {job.kind for job in carry_out(again)} <= {"pictures"}, "all trials are in the store"
    assert decisions(again) == decisions(finished)


def test_more_trials_continue_a_finished_study(finished: Study, tmp_path: Path) -> None:
    study = copied(finished, tmp_path, trials=8)
    ran = carry_out(study)
    assert [job.key for job in ran if job.stage in ("baselines", "search")] == [
        "baselines-6", "baselines-7", "search-6", "search-7",
    ]  # fmt: skip
    assert [row["values"] for row in plans(study, "search")[:6]] == [row["values"] for row in plans(finished, "search")]


def test_a_job_that_is_planned_anew_ends_anew_even_if_it_ends_alike(tmp_path: Path) -> None:
    about = {"stage": "pictures", "number": 0, "trial_id": "0123456789abcdef"}
    end = {"state": "complete", "value": None, "reason": None, "epochs": 0}
    for compared in (["best"], ["best", "baseline 1"], ["best", "baseline 1"]):
        journal = StudyJournal(tmp_path)
        journal.note("planned", **about, compared=compared)
        assert journal.has_completed(**about, compared=compared) == (len(journal.events()) == 4)
        StudyJournal(tmp_path).note("ended", **about, **end)
    assert [row["event"] for row in journal.events()] == ["planned", "ended", "planned", "ended"]


def test_a_folder_belongs_to_one_recipe_and_study(finished: Study, tmp_path: Path) -> None:
    other = sweep_file(tmp_path, recipe={"batch_size": 8})
    with pytest.raises(UserError, match=r"recipe.batch_size was 16, is 8; name another folder with --results"):
        open_study(other, finished.workspace.store.results)
    with pytest.raises(UserError, match=r"study.trials must be >= 6, the number that has been trained, got 5"):
        open_study(sweep_file(tmp_path), finished.workspace.store.results, trials=5)
    with pytest.raises(UserError, match=r"study.seed was 0, is 3"):
        open_study(sweep_file(tmp_path), finished.workspace.store.results, seed=3)


def test_resources_do_not_belong_to_a_folder(finished: Study, tmp_path: Path) -> None:
    study = open_study(sweep_file(tmp_path, resources={"cpus_per_worker": 2}), finished.workspace.store.results)
    assert study.sweep.resources.cpus_per_worker == 2


def test_another_sweep_takes_the_same_teacher_from_the_store(finished: Study, tmp_path: Path) -> None:
    study = with_trials_of(finished, tmp_path / "results", sweep_file(tmp_path, name="other", recipe={"epochs": 3}))
    assert [job.stage for job in carry_out(study, jobs=2)] == ["smoke", "baselines"]


def test_what_one_worker_trained_with_its_own_statistics_is_no_trial_of_a_study_with_two(tmp_path: Path) -> None:
    own = {"batch_norm": "per_worker"}
    one = open_study(sweep_file(tmp_path, recipe=own), tmp_path / "results")
    assert "train" in [job.kind for job in carry_out(one, jobs=4)]
    two = sweep_file(tmp_path, name="two", recipe=own, resources={"workers": 2})
    with pytest.raises(UserError, match=r"per_worker makes another training of 2 workers than of 1, .* begun with"):
        carry_out(open_study(two, tmp_path / "results"))
    carry_out(open_study(sweep_file(tmp_path, name="again", recipe=own), tmp_path / "results"), jobs=4)


def test_trials_of_one_store_serve_studies_with_and_without_a_pruner(finished: Study, tmp_path: Path) -> None:
    """A pruned trial is trained to its end, and a complete one is pruned as in an empty folder."""
    file = sweep_file(tmp_path, name="unpruned", study={"pruner": None})
    unpruned = with_trials_of(finished, tmp_path / "results", file)
    carry_out(unpruned)
    assert {row["state"] for row in outcomes(unpruned, "search")} == {"complete"}
    study = open_study(sweep_file(tmp_path), tmp_path / "results")
    carry_out(study)
    assert decisions(study) == decisions(finished)


def test_equal_points_are_trained_once_and_counted_in_each_place(tmp_path: Path) -> None:
    """Two choices of three trials at random: some are equal, and the best is confirmed once, not twice."""
    choice = {"method": {"name": "kd", "balance": {"alpha_ce": {"choice": [0.2, 0.8]}}, "temperature": 4.0}}
    fixed = {"optimizer": {"name": "adam", "lr": 0.01}}
    settings = {"sampler": {"name": "random"}, "published": None, "pruner": None}
    study = open_study(sweep_file(tmp_path, recipe={**choice, **fixed}, study=settings), tmp_path / "results")
    ran = carry_out(study)
    trained = [job.trial_id for job in ran if job.kind == "train"]
    assert len(trained) == len(set(trained))
    assert len(plans(study, "search")) == 6
    assert len(plans(study, "baselines")) == 1
    confirmed = {row["candidate"]: row["trial_id"] for row in plans(study, "confirm")}
    assert len(confirmed) == len(set(confirmed.values()))


def test_grid_tries_every_point_once(tmp_path: Path) -> None:
    settings = {"sampler": {"name": "grid", "points": 2}, "trials": 4, "published": None, "pruner": None}
    study = open_study(sweep_file(tmp_path, study=settings), tmp_path / "results")
    values = [tuple(study.search.suggest(number).values()) for number in range(study.search.trials)]
    assert sorted(values) == [(0.0, 0.0001), (0.0, 0.03), (1.0, 0.0001), (1.0, 0.03)]
    assert study.baselines.trials == 2


def test_seed_and_number_decide_what_is_suggested(tmp_path: Path) -> None:
    file = sweep_file(tmp_path, study={"published": None}, recipe=TEACHER)
    one, other = (open_study(file, tmp_path / f"results {seed}", seed=seed).search for seed in (0, 1))
    assert one.suggest(0) == one.suggest(0)
    assert len({tuple(values.values()) for values in (one.suggest(0), one.suggest(1), other.suggest(0))}) == 3


TEACHER = {"teacher": {"model": "lenet5_teacher", "optimizer": {"name": "adam", "lr": 0.01}}}


def test_samplers_suggest_differently(finished: Study, tmp_path: Path) -> None:
    """TPE models the trials that have finished, random search does not; Optuna's log level stays as it was."""
    study = open_study(sweep_file(tmp_path, study={"sampler": {"name": "random"}}), tmp_path / "results")
    verbosity = optuna.logging.get_verbosity()
    assert finished.search.suggest(5) == finished.search.planned[5] != study.search.suggest(5)
    assert optuna.logging.get_verbosity() == verbosity


def test_objective_mpa_is_maximised(tmp_path: Path) -> None:
    settings = {"objective": "val/mpa", "trials": 3, "published": None}
    study = open_study(sweep_file(tmp_path, recipe=TEACHER, study=settings), tmp_path / "results")
    carry_out(study)
    reached = [row["best"]["val/mpa"] for row in outcomes(study, "search")]
    first = next(row for row in plans(study, "confirm") if row["candidate"] == "best")
    complete = [
        value for number, value in enumerate(reached) if study.journal.ends("search")[number]["state"] != "pruned"
    ]
    assert reached[first["source"]["number"]] == max(complete)
    assert study.journal.ends("search")[first["source"]["number"]]["value"] == max(complete)


@pytest.mark.parametrize("objective", ["val/nll", "val/ece"])
def test_objectives_nll_and_ece_are_minimised(objective: str, tmp_path: Path) -> None:
    settings = {"objective": objective, "pruner": None, "trials": 3, "published": None}
    study = open_study(sweep_file(tmp_path, recipe=TEACHER, study=settings), tmp_path / "results")
    carry_out(study)
    losses = [row["best"][objective] for row in outcomes(study, "search")]
    first = next(row for row in plans(study, "confirm") if row["candidate"] == "best")
    assert losses[first["source"]["number"]] == min(losses)


def test_conditional_parameters_are_suggested_only_if_they_exist(tmp_path: Path) -> None:
    kd = {"name": "kd", "balance": {"alpha_ce": 0.5}}
    fixed = {**kd, "temperature": 1.0, "convention": "published_mnist"}
    options = [{**kd, "temperature": {"loguniform": [1, 20]}}, fixed]
    recipe = {"method": {"choice": options}}
    settings = {"published": None, "trials": 8, "select": {"candidates": 2, "trainings": 8, "equal_trials": False}}
    file = sweep_file(tmp_path, recipe=recipe, study=settings)
    study = open_study(file, tmp_path / "results")
    for number in range(8):
        values = study.search.suggest(number)
        study.search.plan(number, values)
        assert ("method[kd].temperature" in values) == (values["method"] == "kd")
        if number % 2:  # a batch has ended
            for ended in (number - 1, number):
                rows = [{"epoch": epoch, "val/accuracy": 0.1 * ended} for epoch in (1, 2)]
                study.search.tell(ended, "complete", 0.1 * ended, rows)
    assert {values["method"] for values in study.search.planned.values()} == {"kd", "kd (2)"}
    assert len(carry_out(study, jobs=2)) == len(plans(study, "smoke")) == 2


def test_a_failed_trial_is_data_and_the_study_goes_on(tmp_path: Path) -> None:
    """At a learning rate of 1e30 the loss stops being a number: failed, with a reason, never an accuracy of 0."""
    wild = {"optimizer": {"name": "sgd", "lr": {"choice": [0.05, 1.0e30]}}}
    settings = {"published": None, "sampler": {"name": "grid"}, "pruner": None, "trials": 2}
    points = {"method": {"name": "kd", "balance": {"alpha_ce": 0.5}, "temperature": 4.0}}
    study = open_study(sweep_file(tmp_path, recipe={**wild, **points, **TEACHER}, study=settings), tmp_path / "results")
    carry_out(study)
    assert [row["state"] for row in outcomes(study, "search")] == ["complete", "failed"]
    failed = outcomes(study, "search")[1]
    assert "is nan" in failed["reason"] or "is inf" in failed["reason"]
    assert failed["best"] is None
    assert events(study)[-1]["event"] == "finished"


def test_a_study_whose_teacher_fails_stops_with_its_line(tmp_path: Path) -> None:
    broken = {"teacher": {"model": "lenet5_teacher", "optimizer": {"name": "sgd", "lr": 1.0e30}}}
    study = open_study(sweep_file(tmp_path, recipe=broken), tmp_path / "results")
    with pytest.raises(UserError, match=r"small.yaml:\d+: recipe.teacher: training lenet5_teacher failed: epoch 1"):
        carry_out(study)


def test_a_combination_that_cannot_run_fails_in_the_smoke_stage_with_its_line(tmp_path: Path) -> None:
    """A teacher's file that holds another network is found on the first batch, before anything is trained."""
    weights = tmp_path / "other.safetensors"
    safetensors.torch.save_file({"weight": torch.zeros(3)}, weights)
    teacher = {"teacher": {"model": "lenet5_teacher", "trained": str(weights)}}
    study = open_study(sweep_file(tmp_path, recipe=teacher), tmp_path / "results")
    with pytest.raises(UserError, match=r"small.yaml:\d+: recipe.teacher.trained: .* does not fit lenet5_teacher"):
        execute(study)
    assert {row["stage"] for row in events(study)} == {"smoke"}


def test_a_store_of_a_newer_schema_is_refused(finished: Study, tmp_path: Path) -> None:
    path = copied(finished, tmp_path).journal.folder / "study.json"
    rewrite(path, schema=STUDY_SCHEMA + 1)
    with pytest.raises(UserError, match="written by a newer kdtrain"):
        open_study(sweep_file(tmp_path), tmp_path / "results")


def test_the_sweep_file_as_run_is_kept(finished: Study) -> None:
    assert yaml.safe_load((finished.journal.folder / "sweep.yaml").read_text())["study"]["trials"] == 6


def test_workers_that_run_ahead_do_not_change_where_a_trial_is_pruned(finished: Study, tmp_path: Path) -> None:
    """All epochs are on disk before the study is asked for the first: it still stops where it would have."""
    study = open_study(sweep_file(tmp_path), tmp_path / "results")
    for job in study.jobs():
        assert job is not None
        if job.kind == "train":
            train(job.recipe, study.workspace, final=job.final)
            for epoch in range(1, job.recipe.epochs + 1):
                if study.should_prune(job, epoch):
                    break
        else:
            run_job(study, job)
        study.ended(job)
    assert decisions(study) == decisions(finished)
    assert all(len(study.workspace.store.trial(p["trial_id"]).epochs()) == o["epochs"] for p, o in pruned(study))
    assert carry_out(open_study(sweep_file(tmp_path), tmp_path / "results")) == []


def test_epochs_that_are_done_again_are_judged_again(finished: Study) -> None:
    """From an earlier checkpoint, and on another kind of processor with other bits."""
    plan, outcome = pruned(finished)[0]
    rows = finished.workspace.store.trial(plan["trial_id"]).epochs()
    search, number = finished.search, plan["number"]
    perfect = [row | {"val/accuracy": 1.0, "val/nll": 0.0} for row in rows]
    assert search.pruned_at(number, perfect) is None
    assert search.pruned_at(number, rows[:-1]) is None
    assert search.pruned_at(number, rows) == outcome["epochs"]


def test_what_was_pruned_and_is_begun_again_is_pruned_where_it_was(finished: Study, tmp_path: Path) -> None:
    """Another sweep began it again and was killed: its outcome is gone, and rows are missing."""
    plan, outcome = pruned(finished)[0]
    study = copied(finished, tmp_path)
    folder = study.workspace.store.trial(plan["trial_id"])
    folder.remove_outcome()
    folder.keep_epochs(0)
    carry_out(study)
    assert len(folder.epochs()) == folder.outcome()["epochs"] == outcome["epochs"] > 1
    assert decisions(study) == decisions(finished)


def pruned(study: Study) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    pairs = zip(plans(study, "search"), outcomes(study, "search"), strict=True)
    return [(plan, outcome) for plan, outcome in pairs if outcome["state"] == "pruned"]


def test_a_free_order_continues_after_a_cut_and_opened_again_trains_nothing(tmp_path: Path) -> None:
    """Its prunings depended on which trial ended first: they are read from the record, not decided again."""
    file = sweep_file(tmp_path, study={"order": "free", "batch": None, "trials": 8})
    carry_out(open_study(file, tmp_path / "results"), jobs=11, cut_at_epoch=2)
    study = open_study(file, tmp_path / "results")
    held: list[Job] = []
    for job in study.jobs():  # two at once: the later one ends first
        if job is not None:
            held.append(job)
        if job is None or len(held) == 2:
            latest = held.pop()
            run_job(study, latest)
            study.ended(latest)
    assert len(outcomes(study, "search")) == 8
    assert events(study)[-1]["event"] == "finished"
    again = open_study(file, tmp_path / "results")
    assert carry_out(again) == []
    assert decisions(again) == decisions(study)


def test_what_breaks_outside_a_training_is_tried_again(finished: Study, tmp_path: Path) -> None:
    file = sweep_file(tmp_path)
    study = with_trials_of(finished, tmp_path / "results", file)
    shutil.rmtree(study.workspace.store.trial(plans(finished, "search")[1]["trial_id"]).path)
    job = next(job for job in study.jobs() if job is not None and (job.kind == "train" or study.ended(job)))
    assert job.key == "search-1"
    for _ in range(3):
        study.ended(job, Broken("OSError: [Errno 28] No space left on device", "Traceback"))
    broken = [row for row in events(study) if row["event"] == "ended"][-1]
    assert (broken["state"], broken["reason"]) == ("broken", "OSError: [Errno 28] No space left on device")
    again = open_study(file, tmp_path / "results")
    assert "search-1" in {job.key for job in carry_out(again)}
    assert decisions(again) == decisions(finished)


def test_values_that_do_not_go_together_are_a_failed_trial_with_the_reason(tmp_path: Path) -> None:
    """Each value is valid at some point of the space, so the file is; not every point is."""
    recipe = {
        "epochs": {"choice": [4, 3]},
        "lr_schedule": {"name": "cosine", "warmup_epochs": {"choice": [0, 3]}},
        "optimizer": {"name": "adam", "lr": 0.01},
        "method": {"name": "kd", "balance": {"alpha_ce": 0.5}, "temperature": 4.0},
        "teacher": {**TREE["recipe"]["teacher"], "lr_schedule": {"name": "constant"}, "epochs": 2},
    }
    settings = {"published": None, "sampler": {"name": "grid"}, "pruner": None, "trials": 4}
    study = open_study(sweep_file(tmp_path, recipe=recipe, study=settings), tmp_path / "results")
    carry_out(study)
    ends = {row["number"]: row for row in events(study) if row["event"] == "ended" and row["stage"] == "search"}
    assert sorted(row["state"] for row in ends.values()) == ["complete", "complete", "complete", "failed"]
    (failed,) = [row for row in ends.values() if row["state"] == "failed"]
    assert "must be below epochs 3, got 3" in failed["reason"]
    assert events(study)[-1]["event"] == "finished"


def test_the_winner_is_fixed_before_the_test_split_is_read(finished: Study) -> None:
    winner = winner_of(finished)
    tested = [folder for folder in finished.workspace.store.trials() if (folder.outcome() or {})["test"]]
    assert {row["trial_id"] for stage in ("teacher", "confirm") for row in plans(finished, stage)} == {
        folder.trial_id for folder in tested
    }
    slack_s = 0.02  # a file's time is that of the system's last tick
    assert all(folder.predictions.stat().st_mtime > winner["time"] - slack_s for folder in tested)
