"""Studies whose teacher has a teacher, and data of its own: their stages, messages and reports."""

from pathlib import Path
from typing import Any

import pytest
from studies import carry_out, events, open_study, plans, sweep_file

from analysis.report import write_report
from kdtrain.config.needed_trainings import chain
from kdtrain.errors import NoResult, UserError
from kdtrain.executors.local import execute
from kdtrain.study.description import network_sizes
from kdtrain.study.plan import plan
from kdtrain.study.study import Study

KD = {"name": "kd", "balance": {"alpha": 0.5}, "temperature": 4.0}
ADAM = {"name": "adam", "lr": 0.01}
FIRST: dict[str, Any] = {"model": "lenet5_teacher", "data": {"resolution": 20, "split_seed": 1}}
ASSISTANT: dict[str, Any] = {"model": "lenet5_student", "epochs": 2, "method": KD, "teacher": FIRST}
RECIPE: dict[str, Any] = {
    "teacher": ASSISTANT, "student": {"model": "lenet5_half"}, "method": KD, "optimizer": ADAM, "epochs": 2
}  # fmt: skip
STUDY: dict[str, Any] = {"trials": 1, "published": None, "confirm": {"seeds": 2}, "pruner": None}
AT = {"name": "at", "balance": {"weight": 1.0}, "stages": ["8"]}
CONV: dict[str, Any] = {"model": "test_resnet", "weights": None}


def begun(folder: Path, **recipe: Any) -> Study:
    return open_study(sweep_file(folder, recipe=RECIPE | recipe, study=STUDY), folder / "results")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Return a study that has ended; tests only read it."""
    study = begun(tmp_path_factory.mktemp("chain"))
    carry_out(study)
    return study


def test_the_deepest_teacher_is_trained_first_and_the_plan_counts_each(done: Study) -> None:
    first, second, student = chain(done.sweep.recipe_for({}, 0))
    place = done.workspace
    assert [row["trial_id"] for row in plans(done, "teacher")] == [place.trial_id(first), place.trial_id(second)]
    order = [(row["event"], row["stage"], row["number"]) for row in events(done) if row.get("stage") == "teacher"]
    kinds = ("planned", "ended")
    assert order == [(kind, "teacher", number) for number in (0, 1) for kind in kinds]
    assert plans(done, "search")[0]["trial_id"] == place.trial_id(student)
    assert "teacher    2 " in plan(done.sweep, None)
    smoke = [row["trial_id"] for row in plans(done, "smoke")]
    assert smoke == [place.trial_id(student), place.trial_id(second)]


def test_two_students_share_a_chain_that_is_trained_once(done: Study, tmp_path: Path) -> None:
    again = begun(tmp_path, teacher={"choice": [ASSISTANT, FIRST]})
    recipes = [again.sweep.recipe_for({"teacher": label}, 0) for label in ("lenet5_student", "lenet5_teacher")]
    assert chain(recipes[0])[0] == chain(recipes[1])[0]
    carry_out(again, jobs=5)
    assert len(plans(again, "teacher")) == 2


def test_sizes_are_those_of_each_networks_own_images(done: Study) -> None:
    sizes = network_sizes(done.sweep, 10)
    assert list(sizes) == ["lenet5_student", "lenet5_teacher at 20 px", "lenet5_half"]


def test_the_terminal_and_the_report_name_each_teacher_and_its_data(done: Study) -> None:
    first, second = (remark.partition(": ")[0] for remark in done.remarks[:2])
    assert (first, second) == ("teacher lenet5_teacher", "teacher lenet5_student (taught by lenet5_teacher, kd)")
    report = write_report(done.journal.folder).read_text()
    assert "- Teacher lenet5_student (taught by lenet5_teacher, kd): " in report
    assert "- Teacher lenet5_teacher (its data: split_seed 1, resolution 20): " in report
    assert "| teacher | lenet5_student | " in report
    assert "| teacher's teacher | lenet5_teacher | " in report
    record = done.workspace.trial(done.sweep.recipe_for({}, 0)).recipe()
    assert record is not None
    assert record["teacher"] is not None
    shared = record["teacher"]["shared_images"]
    assert 0 < shared["test"] < record["data"]["test"]
    assert f"training images the teacher was trained on {shared['train']}." in report
    assert f"{shared['val']} of the 150 validation images and {shared['test']} of the 150 test images" in report
    assert "150 images to train on" in report


def test_the_teacher_of_a_finished_teachers_student_is_evaluated(done: Study, tmp_path: Path) -> None:
    first, *_ = chain(done.sweep.recipe_for({}, 0))
    file = {"model": "lenet5_teacher", "trained": str(done.workspace.trial(first).weights), "data": {"resolution": 20}}
    study = begun(tmp_path, teacher=ASSISTANT | {"teacher": file})
    carry_out(study, jobs=5)
    assert [remark.partition(": ")[0] for remark in study.remarks] == [
        f"teacher lenet5_teacher from {file['trained']}",
        "teacher lenet5_student (taught by lenet5_teacher, kd)",
    ]


def test_a_chain_that_cannot_run_fails_in_the_preflight_checks_at_its_place(tmp_path: Path) -> None:
    study = begun(tmp_path, teacher=CONV | {"method": AT, "teacher": CONV | {"data": {"resolution": 64}}})
    with pytest.raises(UserError, match=r"small\.yaml:\d+: recipe\.teacher\.method\.stages: at compares maps"):
        execute(study)
    assert plans(study, "teacher") == []


def test_what_a_teachers_data_do_not_have_is_told_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"small\.yaml:\d+: recipe\.teacher\.teacher\.data\.part\.of: must be <= 15"):
        begun(tmp_path, teacher=ASSISTANT | {"teacher": FIRST | {"data": {"part": {"of": 400, "index": 399}}}})


def test_a_teacher_whose_teacher_fails_is_not_trained(tmp_path: Path) -> None:
    hot = FIRST | {"optimizer": {"name": "sgd", "lr": 1e18}}
    study = begun(tmp_path, teacher=ASSISTANT | {"teacher": hot})
    with pytest.raises(NoResult, match=r"small\.yaml:\d+: recipe\.teacher\.teacher: training lenet5_teacher failed"):
        execute(study)
    assert len(plans(study, "teacher")) == 1
