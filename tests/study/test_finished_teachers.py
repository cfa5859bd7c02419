"""Studies whose teacher is finished: it is evaluated before the search, once, and what learned nothing is said."""

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from studies import TREE, carry_out, events, open_study, plans, sweep_file
from trainings import recipe, trained

from analysis.report import write_report
from kdtrain.errors import UserError
from kdtrain.executors.local import execute
from kdtrain.models.build import build
from kdtrain.models.config import Network
from kdtrain.study.study import Study
from kdtrain.teacher.network import trained_teacher
from kdtrain.training.evaluation import accuracy, logits_of
from kdtrain.training.teacher_evaluation import evaluate_teacher

TAUGHT = recipe(
    data=TREE["recipe"]["data"],
    student={"model": "lenet5_teacher"},
    optimizer={"name": "adam", "lr": 0.01},
    epochs=12,
)
"""The recipe by which the finished teacher was trained."""
SHORT: dict[str, Any] = {
    "trials": 1, "published": None, "confirm": {"seeds": 2}, "pruner": {"name": "none"}
}  # fmt: skip
CHANCE = "not better than the most frequent class (10.00% of the validation images): nothing was learned"
FIXED: dict[str, Any] = {
    "method": {"name": "kd", "balance": {"alpha": 0.5}, "temperature": 4.0},
    "optimizer": {"name": "adam", "lr": 0.01},
    "epochs": 3,
}


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    """Return the weights of a trained teacher."""
    return trained(TAUGHT).weights


def begun(folder: Path, content: Any, **teacher: Any) -> Study:
    torch.save(content, folder / "teacher.pth")
    own = {"model": "lenet5_teacher", "trained": str(folder / "teacher.pth"), **teacher}
    return open_study(sweep_file(folder, recipe={**FIXED, "teacher": own}, study=SHORT), folder / "results")


def report_of(study: Study) -> str:
    return write_report(study.journal.folder).read_text()


def test_a_finished_teacher_is_evaluated_before_the_search_and_only_once(
    state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    study = begun(tmp_path, {"model_state_dict": state, "epoch": 3})
    kinds: list[str] = []
    for job in study.jobs():
        assert job is not None
        kinds.append(job.kind)
        if job.stage == "baselines":
            break
        study.ended(job, None if job.kind == "smoke" else evaluate_teacher(job.recipe, study.workspace) and None)
    assert kinds == ["smoke", "evaluate", "train"]
    config = study.sweep.recipe_for({}, 0)
    folder = study.workspace.finished_teacher(config)
    outcome = folder.outcome()
    assert outcome is not None
    assert outcome["best"] is not None
    assert outcome["best"]["val/accuracy"] == trained(TAUGHT).outcome["best"]["val/accuracy"] > 0.5
    file = tmp_path / "teacher.pth"
    said = f"teacher lenet5_teacher from {file}: validation accuracy {outcome['best']['val/accuracy']:.2%}"
    assert study.remarks == [f"lenet5_teacher takes the weights model_state_dict of {file}", said]
    again = open_study(tmp_path / "small.yaml", tmp_path / "results")
    assert {job.kind for job in carry_out(again)} <= {"train", "test", "pictures"}
    assert said in again.remarks
    (planned,) = plans(again, "teacher")
    assert planned["trial_id"] == folder.trial_id
    report = report_of(again)
    percent = f"{100 * outcome['best']['val/accuracy']:.2f}"
    assert f"- Teacher lenet5_teacher from {file}: {percent} % validation accuracy." in report
    assert f"- lenet5_teacher takes the weights `model_state_dict` of {file}." in report
    tested = again.workspace.store.trial(plans(again, "confirm")[0]["trial_id"]).outcome()
    assert tested is not None
    assert tested["test"] is not None
    percent = f"{100 * tested['test']['test/teacher_accuracy']:.2f}"
    assert f"| teacher (finished) | lenet5_teacher | 19 754 | 0.10 | {percent} [" in report


def test_finished_teachers_of_an_ensemble_are_evaluated_each_and_have_their_own_test_accuracy(
    state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    teachers = []
    for name, factor in (("one", 1.0), ("none", 0.0)):
        torch.save({key: factor * value for key, value in state.items()}, tmp_path / f"{name}.pth")
        teachers.append({"model": "lenet5_teacher", "trained": str(tmp_path / f"{name}.pth")})
    study = open_study(sweep_file(tmp_path, recipe={**FIXED, "teacher": teachers}, study=SHORT), tmp_path / "results")
    assert [job.stage for job in carry_out(study)][1:3] == ["teacher", "teacher"]
    data = study.workspace.dataset(study.sweep.recipe_for({}, 0).data)
    tested = study.workspace.store.trial(plans(study, "confirm")[0]["trial_id"]).outcome()
    assert tested is not None
    assert tested["test"] is not None
    right = accuracy(logits_of(network_of(state), data.test, torch.device("cpu")), data.test.labels)
    assert (tested["test"]["test/teacher_1_accuracy"], tested["test"]["test/teacher_2_accuracy"]) == (right, 0.1)
    rows = [line for line in report_of(study).splitlines() if line.startswith("| member of the ensemble (finished)")]
    assert [row.split(" | ")[4].split(" ")[0] for row in rows] == [f"{100 * right:.2f}", "10.00"]


def network_of(state: dict[str, torch.Tensor]) -> torch.nn.Module:
    network = build(Network(model="lenet5_teacher"), (1, 16, 16), 10, 0, pretrained=False)
    network.load_state_dict(state)
    return network


def test_a_teacher_that_names_one_class_has_learned_nothing(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    study = begun(tmp_path, {name: torch.zeros_like(value) for name, value in state.items()})
    carry_out(study)
    assert study.remarks[0].endswith(f"validation accuracy 10.00%, {CHANCE}")
    assert f"- **The teacher lenet5_teacher is {CHANCE}.**" in report_of(study)


def test_students_that_have_learned_nothing_are_said_so_of_each_stage(
    state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    torch.save(state, tmp_path / "teacher.pth")
    teacher = {"model": "lenet5_teacher", "trained": str(tmp_path / "teacher.pth")}
    slow = {"optimizer": {"name": "sgd", "lr": 1.0e-9}, "epochs": 1, "student": {"model": "lenet5_student"}}
    file = sweep_file(tmp_path, recipe={**FIXED, **slow, "teacher": teacher}, study=SHORT)
    study = open_study(file, tmp_path / "results")
    carry_out(study)
    assert [remark for remark in study.remarks if CHANCE in remark] == [
        f"baselines: the complete trial is {CHANCE}",
        f"search: the complete trial is {CHANCE}",
        f"confirm: each of the 4 complete trials is {CHANCE}",
    ]
    assert f"**Best: 2 of 2 runs (seeds 1000000, 1000001) are {CHANCE[:40]}" in report_of(study)


def test_several_sets_of_weights_are_named_and_the_key_is_another_teacher(
    state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    content = {"state_dict": {name: torch.zeros_like(value) for name, value in state.items()}, "state_dict_ema": state}
    (tmp_path / "raw").mkdir(), (tmp_path / "ema").mkdir()
    raw, ema = begun(tmp_path / "raw", content), begun(tmp_path / "ema", content, weights_key="state_dict_ema")
    configs = [study.sweep.recipe_for({}, 0) for study in (raw, ema)]
    assert len({raw.workspace.finished_teacher(config).trial_id for config in configs}) == 2
    assert len({raw.workspace.trial_id(config) for config in configs}) == 2
    file = tmp_path / "raw" / "teacher.pth"
    carry_out(raw, jobs=2), carry_out(ema, jobs=3)
    assert raw.remarks[0] == (
        f"lenet5_teacher takes the weights state_dict of {file}; weights_key chooses others: state_dict_ema"
    )
    assert ema.remarks[0] == f"lenet5_teacher takes the weights state_dict_ema of {tmp_path / 'ema' / 'teacher.pth'}"
    best = [evaluate_teacher(study.sweep.recipe_for({}, 0), study.workspace)["best"] for study in (raw, ema)]
    assert [each["val/accuracy"] for each in best if each] == [0.1, trained(TAUGHT).outcome["best"]["val/accuracy"]]


def test_weights_from_which_a_teachers_training_goes_on_are_said_with_the_other_key(
    state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    file = tmp_path / "begun.safetensors"
    safetensors.torch.save_file(state, file)
    teacher = {"model": "lenet5_teacher", "weights": {"file": str(file)}, "epochs": 1}
    study = open_study(sweep_file(tmp_path, recipe={**FIXED, "teacher": teacher}, study=SHORT), tmp_path / "results")
    carry_out(study, jobs=2)
    assert study.remarks == [
        f"teacher lenet5_teacher: its training goes on from {file}; if it is finished, write"
        f" teacher: {{model: lenet5_teacher, trained: {file}}}"
    ]


def test_logits_that_are_not_finite_stop_the_study(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    study = begun(tmp_path, {name: torch.full_like(value, torch.inf) for name, value in state.items()})
    with pytest.raises(UserError, match="finite"):
        execute(study)
    assert not [row for row in events(study) if row["event"] == "planned" and row["stage"] == "baselines"]


def test_the_accuracy_is_that_of_the_files_network(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    study = begun(tmp_path, state)
    config = study.sweep.recipe_for({}, 0)
    data = study.workspace.dataset(config.data)
    teacher = trained_teacher(config, data, study.workspace)
    assert teacher is not None
    best = evaluate_teacher(config, study.workspace)["best"]
    assert best is not None
    assert best["val/accuracy"] == accuracy(logits_of(teacher.network, data.val, torch.device("cpu")), data.val.labels)
    assert teacher.reference == {
        "trial_id": study.workspace.finished_teacher(config).trial_id,
        "file": str(tmp_path / "teacher.pth"),
        "sha256": teacher.digest,
    }
    larger = config.model_copy(update={"data": config.data.model_copy(update={"resolution": 20})})
    assert study.workspace.finished_teacher(larger).trial_id != study.workspace.finished_teacher(config).trial_id
