"""Studies whose teacher is an ensemble: each of its teachers is trained once, and the report tells them apart."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from studies import carry_out, open_study, plans, sweep_file
from torch.nn import functional

from analysis.report import write_report
from kdtrain.config.needed_trainings import chain
from kdtrain.executors.local import execute
from kdtrain.study.cost import sharing, stage_costs, teacher_images, trainings
from kdtrain.study.plan import plan
from kdtrain.study.step_cost import image_flops
from kdtrain.study.study import Study

ADAM = {"name": "adam", "lr": 0.01}
FIRST = {"model": "lenet5_teacher", "epochs": 8, "optimizer": ADAM}
OTHER = {"model": "lenet5_half", "epochs": 8, "optimizer": ADAM}
SHORT: dict[str, Any] = {
    "trials": 2, "published": None, "confirm": {"seeds": 2}, "pruner": {"name": "none"}, "sampler": {"name": "random"},
    "select": {"candidates": 2, "trainings": 4},
}  # fmt: skip
FIXED: dict[str, Any] = {"optimizer": ADAM, "epochs": 2}


def begun(folder: Path, teacher: Any, *, name: str = "small", **recipe: Any) -> Study:
    return open_study(
        sweep_file(folder, name=name, recipe={**FIXED, "teacher": teacher, **recipe}, study=SHORT), folder / "results"
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Return a study of two networks, the weight of the second searched, carried out with its pictures."""
    study = begun(
        tmp_path_factory.mktemp("ensemble"), {"ensemble": {"of": [FIRST, OTHER], "weights": [1, {"uniform": [0.5, 2]}]}}
    )
    execute(study)
    return study


def test_each_teacher_is_trained_once_and_shared_with_studies_of_one_of_them(finished: Study) -> None:
    planned = plans(finished, "teacher")
    assert len({row["trial_id"] for row in planned}) == len(planned) == 2
    assert [remark.split(":")[0] for remark in finished.remarks[:2]] == [
        "teacher lenet5_teacher",
        "teacher lenet5_half",
    ]
    folder = finished.workspace.store.results.parent
    alone = begun(folder, {"choice": [OTHER, [FIRST, OTHER]]}, name="alone")
    stages = [job.stage for job in carry_out(alone, jobs=3)]
    assert "teacher" not in stages
    assert {row["trial_id"] for row in plans(alone, "teacher")} == {row["trial_id"] for row in planned}


def test_the_report_has_the_ensemble_with_its_accuracy_and_each_member(finished: Study) -> None:
    report = write_report(finished.journal.folder).read_text()
    winner = finished.journal.winner()
    (planned,) = [row for row in plans(finished, "confirm") if (row["candidate"], row["seed"] % 10) == (winner, 0)]
    trial = finished.workspace.store.trial(planned["trial_id"])
    outcome, record = trial.outcome(), trial.recipe()
    assert outcome is not None
    assert outcome["test"] is not None
    assert record is not None
    accuracy = f"{100 * outcome['test']['test/teacher_accuracy']:.2f}"
    rows = re.findall(r"^\| (teacher \(ensemble of 2\)|member of the ensemble, seed 0) \| ([^|]+) \|", report, re.M)
    assert [model for _, model in rows] == ["lenet5_teacher, lenet5_half", "lenet5_teacher", "lenet5_half"]
    assert f" {accuracy} [" in next(
        line for line in report.splitlines() if "(ensemble of 2)" in line and line[0] == "|"
    )
    share = planned["values"]["teacher.ensemble.weights.1"]
    assert "an ensemble of 2 networks, combined as the mean of their probabilities" in report
    assert f"weights 1, {share:.4g}." in report
    validation = trial.epochs()[0]["val/teacher_accuracy"]  # type: ignore[typeddict-item]
    assert f"- Teacher ensemble of 2 (lenet5_teacher, lenet5_half): {100 * validation:.2f} % validation" in report
    assert "`weights.1`" in report
    assert (finished.workspace.store.results / "small" / "best.yaml").read_text().count("lenet5_") == 3


def test_parameters_and_flops_of_an_ensemble_are_the_sums(finished: Study) -> None:
    report = write_report(finished.journal.folder).read_text()
    cells = {
        row[1]: row
        for row in ([cell.strip() for cell in line.split("|")] for line in report.splitlines())
        if len(row) > 6
    }
    numbers = [
        float(cells[name][3].replace(" ", "")) for name in ("teacher (ensemble of 2)", "student alone (baseline)")
    ]
    described = finished.journal.study_record()
    assert described is not None
    sizes = described["models"]
    assert numbers[0] == sum(sizes[name]["parameters"] for name in ("lenet5_teacher", "lenet5_half"))
    flops = sum(sizes[name]["flops_per_image"] for name in ("lenet5_teacher", "lenet5_half"))
    assert cells["teacher (ensemble of 2)"][4] == f"{flops / 1e6:.2f}"
    recipe = finished.sweep.recipe_for(plans(finished, "search")[0]["values"], 0)
    assert image_flops(recipe, 10).teacher == flops


def test_the_pictures_show_the_combined_output(finished: Study) -> None:
    with np.load(finished.journal.folder / "pictures.npz") as arrays:
        of_teacher = arrays["softened_teacher"]
        assert "gradcam_none_reason" in arrays or "teacher" not in arrays["gradcam_none_roles"]
    assert of_teacher.shape == (2, 10)
    winner = finished.journal.winner()
    planned = next(row for row in plans(finished, "confirm") if row["candidate"] == winner)
    recipe = finished.sweep.recipe_for(planned["values"], planned["seed"])
    members = [finished.workspace.store.trial(row["trial_id"]) for row in plans(finished, "teacher")]
    logits = [torch.from_numpy(np.load(member.predictions)["val_logits"]).double() for member in members]
    softened = sum(
        share * functional.softmax(own / 4, dim=1) for share, own in zip(recipe.ensemble.shares, logits, strict=True)
    )
    nearest = (softened - torch.from_numpy(of_teacher[1])).abs().amax(1).min()
    assert nearest < 1e-5


def test_a_plan_counts_every_teacher_and_shares_their_outputs_between_weights(tmp_path: Path) -> None:
    written = {"ensemble": {"of": FIRST, "seeds": 3, "weights": [1, 1, {"uniform": [0, 2]}]}}
    several, one = begun(tmp_path, written).sweep, begun(tmp_path, FIRST, name="one").sweep
    assert (trainings(several)["teacher"], trainings(one)["teacher"]) == (3, 1)
    assert sharing(several, 150, 10).cached[0].bytes_per_image == 3 * sharing(one, 150, 10).cached[0].bytes_per_image
    assert sharing(several, 150, 10).splitting == ()
    assert teacher_images(several, 150, 10) == teacher_images(one, 150, 10) == 150
    flops = [{cost.stage: cost.flops for cost in stage_costs(sweep, 150, 10)} for sweep in (several, one)]
    for stage in ("teacher", "teacher outputs"):
        assert flops[0][stage] == 3 * flops[1][stage]
    assert flops[0]["search to confirm"] == pytest.approx(flops[1]["search to confirm"])
    assert "weights.2" in plan(several, None)


def test_a_broken_member_stops_the_study_with_its_name(tmp_path: Path) -> None:
    study = begun(tmp_path, [FIRST, OTHER | {"optimizer": {"name": "sgd", "lr": 1.0e30}}])
    with pytest.raises(Exception, match=r"small.yaml:\d+: recipe.teacher: training lenet5_half failed: epoch 1"):
        execute(study)


KD = {"name": "kd", "balance": {"alpha": 0.5}, "temperature": 4.0}
LARGER = FIRST | {"epochs": 2, "data": {"resolution": 20, "split_seed": 1}}
ASSISTANT = {"model": "lenet5_student", "epochs": 2, "method": KD, "teacher": [LARGER, FIRST | {"epochs": 2}]}


def test_members_have_their_own_data_and_their_own_teachers_which_may_be_several(tmp_path: Path) -> None:
    study = begun(tmp_path, [LARGER, ASSISTANT])
    carry_out(study)
    recipe = study.sweep.recipe_for(plans(study, "search")[0]["values"], 0)
    needed, place = chain(recipe)[:-1], study.workspace
    assert [row["trial_id"] for row in plans(study, "teacher")] == [place.trial_id(each) for each in needed]
    assert [(each.student.model, each.data.resolution) for each in needed] == [
        ("lenet5_teacher", 20), ("lenet5_teacher", 16), ("lenet5_student", 16),
    ]  # fmt: skip
    assert len(plans(study, "smoke")) == 2, "the student and the teacher that is distilled"
    confirmed = place.store.trial(plans(study, "confirm")[0]["trial_id"]).recipe()
    assert confirmed is not None
    assert confirmed["teacher"] is not None
    larger, assistant = confirmed["teacher"]["members"]
    assert (larger["trial_id"], assistant["trial_id"]) == (place.trial_id(needed[0]), place.trial_id(needed[2]))
    assert larger["shared_images"]["train"] < assistant["shared_images"]["train"] == confirmed["data"]["train"]
    of_assistant = place.trial(needed[2]).recipe()
    assert of_assistant is not None
    assert of_assistant["teacher"] is not None
    members = of_assistant["teacher"]["members"]
    assert [member["trial_id"] for member in members] == [place.trial_id(each) for each in needed[:2]]
    assert ["shared_images" in member for member in members] == [True, False]
    report = write_report(study.journal.folder).read_text()
    taught_by = "taught by ensemble of 2 x lenet5_teacher, kd"
    assert f"- Teacher lenet5_student (seed 0; {taught_by}): " in report
    assert "- Teacher lenet5_teacher (seed 0; its data: split_seed 1, resolution 20): " in report
    rows = [line.split(" | ")[:2] for line in report.splitlines() if re.match(r"\| (teacher|member).* lenet5", line)]
    assert rows == [
        ["| teacher (ensemble of 2)", "lenet5_teacher, lenet5_student"],
        ["| member of the ensemble, seed 0", "lenet5_teacher"],
        ["| member of the ensemble, seed 0", "lenet5_student"],
        ["| teacher's teacher", "lenet5_teacher"],
    ]
    leaks = [line for line in report.splitlines() if "so what it teaches is not independent" in line]
    assert [f"Teacher {i} of the ensemble was trained on" in leaks[i - 1] for i in (1, 2)] == [True, True]
