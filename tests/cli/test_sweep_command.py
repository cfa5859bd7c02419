"""`kdtrain sweep`, `plan` and `check`: exit codes, sentences, and nothing left behind by what was refused."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from studies import TREE, carry_out, open_study, sweep_file

from kdtrain.cli import check, plan
from kdtrain.cli.sweep import main
from kdtrain.config.sweep import load_sweep
from kdtrain.storage.folder import locked
from kdtrain.study.cost import teacher_images, trainings

ROOT = Path(__file__).parents[2]
VALID = yaml.safe_dump(TREE, sort_keys=False)


def edited(old: str, new: str) -> str:
    assert old in VALID, old
    return VALID.replace(old, new, 1)


BAD_FILES = {
    "empty": ("", "is empty"),
    "not YAML": ("recipe: [1, 2", "is not YAML"),
    "duplicate key": (edited("  batch_size: 16\n", "  batch_size: 16\n  batch_size: 32\n"), "is written twice"),
    "unknown key": (edited("batch_size", "batchsize"), "nearest: batch_size"),
    "wrong type": (edited("epochs: 4", "epochs: four"), "recipe.epochs: must be a whole number"),
    "reversed range": (edited("- 0.0001\n      - 0.03", "- 0.03\n      - 0.0001"), "must go from low to high"),
    "loguniform from 0": (edited("- 0.0001\n", "- 0\n"), "loguniform must be > 0"),
    "unknown method": (edited("name: kd", "name: kdd"), "nearest: kd"),
    "unknown model": (edited("model: lenet5_student", "model: lenet5_studnet"), "nearest: lenet5_student"),
    "unknown data set": (edited("name: digits", "name: digit"), "nearest: digits"),
    "a temperature for a method that has none": (edited("name: kd", "name: none"), "none has no 'temperature'"),
    "a sweep without a teacher": (edited("  teacher:", "  no_teacher:"), "recipe.teacher"),
    "more workers than there can be": (VALID + "resources: {workers: 4000}\n", "a trial needs 4000 CPUs"),
    "more trials at once than fit": (VALID + "resources: {concurrent_trials: 4000}\n", "trials fit at once, got 4000"),
    "more GPUs than there are": (VALID + "resources: {gpus_per_worker: 99}\n", "a trial needs 99 GPUs"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_is_a_sentence_and_exit_code_2_and_leaves_nothing(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, expected = BAD_FILES[case]
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    assert main([str(file), "--results", str(tmp_path / "results")]) == 2
    shown = capsys.readouterr()
    assert expected in shown.err, shown.err
    assert "Traceback" not in shown.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.yaml"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--trials", "0"], "--trials: must be >= 1, got 0"),
        (["--seed", "-1"], "--seed: must be >= 0, got -1"),
        (["--set", "recipe.epochs"], "must be written as recipe.epochs=3"),
        (["--set", "recipe.epoch=3"], "nearest: epochs"),
        (["--set", "epochs=3"], "did you mean recipe.epochs"),
    ],
)
def test_a_bad_option_is_a_sentence_and_leaves_nothing(
    options: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = sweep_file(tmp_path)
    assert main([str(file), "--results", str(tmp_path / "results"), *options]) == 2
    assert expected in (err := capsys.readouterr().err), err
    assert not (tmp_path / "results").exists()


def test_every_mistake_of_a_file_is_reported_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(
        edited("name: digits", "name: digit").replace("epochs: 4", "epochs: -4").replace("trials: 6", "trials: 0")
    )
    assert main([str(file), "--check"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert all(line.startswith(f"{file}:") for line in lines)


def test_absent_data_says_where_it_looked_and_how_to_get_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = sweep_file(tmp_path, recipe={"data": {"name": "mnist"}})
    assert main([str(file), "--results", str(tmp_path / "results"), "--data", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert f"mnist is not there (looked for {tmp_path}/MNIST/raw)" in err
    assert "torchvision.datasets.MNIST" in err
    assert "--data DIR or KDTRAIN_DATA" in err
    assert not (tmp_path / "results").exists()


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """A sweep file whose results folder holds the beginning of its study."""
    file = sweep_file(tmp_path)
    carry_out(open_study(file, tmp_path / "results"), jobs=1)
    return file


def everything(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path): path.read_bytes() for path in files}


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda study: {**study, "recipe": {**study["recipe"], "epochs": 9}}, "holds another study of this name"),
        (lambda study: {**study, "schema": 2}, "written by a newer kdtrain"),
    ],
)
def test_a_folder_that_is_not_ours_is_refused_and_kept_as_it_is(
    damage: object, expected: str, begun: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert callable(damage)
    results = begun.parent / "results"
    path = results / "small" / "study.json"
    path.write_text(json.dumps(damage(json.loads(path.read_text()))))
    before = everything(results)
    assert main([str(begun), "--results", str(results)]) == 2
    assert expected in capsys.readouterr().err
    assert everything(results) == before


def test_two_drivers_of_one_sweep_do_not_meet(begun: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = begun.parent / "results"
    with locked(results / "small", wait=False):
        assert main([str(begun), "--results", str(results)]) == 2
    assert "another sweep is at work there" in capsys.readouterr().err


def test_plan_names_stages_space_networks_and_cost_and_starts_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(sweep_file(tmp_path)), "--plan", "--results", str(tmp_path / "results")]) == 0
    out = capsys.readouterr().out
    for words in (
        "baselines  6", "search     6", "<= 8", "loguniform 0.0001 to 0.03", "19,754", "11,604", "cost at most",
    ):  # fmt: skip
        assert words in out, out
    assert not (tmp_path / "results").exists()


DEAR = {
    "student": ({"model": "lenet5_student"}, {"model": "lenet5_teacher"}),
    "method": (
        {"name": "kd", "balance": {"alpha": 0.5}, "temperature": 4.0},
        {"name": "mgd", "balance": {"weight": 1.0}, "stage": "4"},
    ),
    "r_drop": (None, {"weight": 0.3}),
}


@pytest.mark.parametrize("field", list(DEAR))
def test_the_cost_of_a_plan_is_that_of_the_dearest_training_of_the_space(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], field: str
) -> None:
    """MGD's generator and both passes of R-Drop are counted, wherever the dear option stands."""
    cheap, dear = DEAR[field]

    def teraflops(value: Any) -> float:
        fixed = {"student": {"model": "resnet10t", "weights": None, "dropout": 0.1}} if field == "r_drop" else {}
        changes = {
            "data": {"name": "digits", "resolution": 32},
            "optimizer": {"name": "adam", "lr": {"loguniform": [0.001, 0.01]}},
        }
        study = {"published": None, "trials": 2, "pruner": None}
        distilling = {"method": {"name": "kd", "balance": {"alpha": {"uniform": [0, 1]}}, "temperature": 4.0}}
        file = sweep_file(tmp_path, recipe={**changes, **distilling, **fixed, field: value}, study=study)
        assert plan.main([str(file)]) == 0
        out = capsys.readouterr().out
        return float(out.partition("cost at most: ")[2].partition(" TFLOP")[0].replace(",", ""))

    either = [teraflops({"choice": options}) for options in ([cheap, dear], [dear, cheap])]
    assert either[0] == either[1] > 1.02 * teraflops(cheap)


FIXED = {"optimizer": {"name": "sgd", "lr": 0.1}, "batch_size": 16}
SHARED: list[tuple[dict[str, Any], list[str]]] = [
    ({"method": {"name": "kd", "balance": {"alpha": {"uniform": [0, 1]}}, "temperature": 4.0}},
     ["computed once for all trials: 40 bytes", "the same view in every epoch"]),
    ({"mixup": {"choice": [None, {}]}},
     ["40 bytes", "3 streams of views", "4 epochs each", "of mixup ha"]),
    ({"data": {"name": "digits", "resolution": {"choice": [16, 20]}}},
     ["of data.resolution ha"]),
    ({"teacher": {**FIXED, "precision": "fp32", "model": {"choice": ["lenet5_teacher", "lenet5_student"]}},
      "precision": {"choice": ["fp32", "bf16"]}}, ["of teacher.model, precision ha"]),
    ({"data": {"name": "digits", "resolution": 32}, "batch_size": {"choice": [16, 32]},
      "teacher": {**FIXED, "model": "test_resnet", "weights": None},
      "student": {"model": "test_resnet", "weights": None},
      "method": {"name": "sp", "balance": {"weight": 10.0}, "stages": ["8"]}},
     ["of batch_size ha"]),
    ({"data": {"name": "digits", "resolution": 64}, "teacher": {**FIXED, "model": "resnet10t", "weights": None},
      "student": {"model": "resnet10t", "weights": None},
      "method": {"name": "mgd", "balance": {"weight": {"loguniform": [0.1, 1]}}, "stage": "8"}},
     ["computed once for all trials: 32,808 bytes", "the same view in every epoch, 0.03 GB"]),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "said"), SHARED, ids=["kd", "mixup", "resolution", "teacher", "sp", "mgd"])
def test_a_plan_says_what_trials_share_and_what_splits_them(
    changes: dict[str, Any], said: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = {"published": None, "trials": 2, "pruner": None, "confirm": {"best": 1, "seeds": 2}}
    file = sweep_file(tmp_path, recipe=changes, study=study)
    assert plan.main([str(file)]) == 0
    out = capsys.readouterr().out
    assert all(text in out for text in said), out
    assert plan.main([str(file), "--set", "resources.teacher_cache=none"]) == 0
    assert "in every trial (resources.teacher_cache: none)" in capsys.readouterr().out


def test_a_plan_does_not_split_by_what_changes_no_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes = {"batch_size": {"choice": [16, 32]}, "teacher": {**FIXED, "model": "lenet5_teacher"}}
    assert plan.main([str(sweep_file(tmp_path, recipe=changes, study={"published": None}))]) == 0
    out = capsys.readouterr().out
    assert "computed once for all trials" in out
    assert not re.search("of (its|their) own", out)


def test_a_plan_says_that_whole_maps_do_not_fit_into_the_budget(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = sweep_file(tmp_path, recipe=SHARED[-1][0], study={"published": None, "trials": 2, "pruner": None})
    needed = 32_808 * 898
    assert plan.main([str(file), "--set", f"resources.cache_bytes={needed}"]) == 0
    assert "in every trial" not in capsys.readouterr().out
    assert plan.main([str(file), "--set", f"resources.cache_bytes={needed - 1}"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "in every trial" in line)
    assert all(said in line for said in ("mgd", "32,808 bytes", f"{needed:,}", f"{needed - 1:,}", "cache_bytes"))


def test_a_plan_says_that_views_make_room_for_one_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = sweep_file(tmp_path, recipe={"mixup": {}}, study={"published": None, "trials": 2, "pruner": None})
    said = "more than the 0.00 GB of resources.cache_bytes: shared only by trials that are at the same epoch"
    asked = []
    for budget, too_small in ((1 << 30, False), (10_000, True)):
        assert plan.main([str(file), "--set", f"resources.cache_bytes={budget}"]) == 0
        assert (said in capsys.readouterr().out) == too_small
        asked.append(teacher_images(load_sweep(file, [f"resources.cache_bytes={budget}"]), 150, 10))
    counts, streams, epochs = trainings(load_sweep(file)), 1 + 2, 4
    assert asked == [streams * epochs * 150, (counts["search"] + counts["confirm"]) * epochs * 150]


def test_plan_of_mnist_needs_no_data(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert plan.main([str(ROOT / "sweeps" / "mnist_kd.yaml"), "--data", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "81,194" in out
    assert "46,164" in out


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "sweeps").glob("*.yaml")))
def test_every_sweep_in_the_repository_is_valid(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """By the command and by the flag of run_sweep.py alike."""
    file = str(ROOT / "sweeps" / f"{name}.yaml")
    assert check.main([file]) == main([file, "--check"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == second
    assert first.startswith(f"{file}: valid; ")


def test_what_was_printed_is_whole_or_the_command_fails() -> None:
    command = [sys.executable, "run_sweep.py", "sweeps/digits_kd.yaml", "--check"]
    with open("/dev/full", "w") as full:
        unwritten = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert unwritten.returncode != 0
    assert "No space left on device" in unwritten.stderr
