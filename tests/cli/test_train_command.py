"""`kdtrain train RECIPE.yaml`: exit codes and sentences."""

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from made_up_data import paint
from trainings import CPU, KD, NO_DATA, recipe, timeless, trained

from kdtrain.cli.train import main
from kdtrain.runtime.device import device_name
from kdtrain.storage.folder import locked
from kdtrain.trials.identity import trial_id
from kdtrain.trials.store import Store


@pytest.fixture
def asked(tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]):
    """(recipe or the text of its file, more arguments) -> (exit code, stdout, stderr), in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KDTRAIN_DATA", raising=False)

    def ask(written: Any, *arguments: str) -> tuple[int, str, str]:
        text = written if isinstance(written, str) else json.dumps(written.model_dump(mode="json", exclude_none=True))
        Path("best.yaml").write_text(text)
        code = main(["best.yaml", "--device", "cpu", *arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return ask


def left_behind() -> list[str]:
    return sorted(path.name for path in Path().iterdir() if path.name != "best.yaml")


def test_teacher_then_student_are_trained_as_train_does_and_their_numbers_printed(asked, tmp_path: Path) -> None:
    config = recipe(**KD)
    code, out, err = asked(config)
    assert (code, err) == (0, "")
    assert "teacher: not better than the most frequent class (10.00% of the validation images)" in out
    lines = [line for line in out.splitlines() if "nothing was learned" not in line]
    assert lines[0] == f"teacher: lenet5_teacher on digits, 2 epochs, seed 0, device {device_name(CPU)}"
    assert lines[4] == f"kd: lenet5_student on digits, 2 epochs, seed 0, device {device_name(CPU)}"
    assert [line.split()[:2] for line in lines[1:3] + lines[5:7]] == [["epoch", "1"], ["epoch", "2"]] * 2
    outcome = Store(tmp_path / "results").trial(trial_id(config, NO_DATA)).outcome()
    best, test = outcome["best"], outcome["test"]
    assert lines[7] == (
        f"kd: best epoch {best['epoch']}: val accuracy {best['val/accuracy']:.4f}; "
        f"test accuracy {test['test/accuracy']:.4f}, test nll {test['test/nll']:.4f} (60 images)"
    )
    assert len(lines) == 8
    direct = trained(config, tmp_path / "direct")
    commanded = Store(tmp_path / "results").trial(direct.folder.trial_id)
    assert [timeless(row) for row in commanded.epochs()] == direct.rows
    assert commanded.weights.read_bytes() == direct.folder.weights.read_bytes()
    code, again, _ = asked(config)
    assert (code, again.splitlines()) == (0, [line for line in out.splitlines() if not line.startswith("epoch")])


def test_the_teachers_of_an_ensemble_are_trained_one_after_the_other(asked, tmp_path: Path) -> None:
    config = recipe(**KD | {"teacher": {"ensemble": {"of": KD["teacher"], "seeds": 2}}})
    code, out, err = asked(config)
    assert (code, err) == (0, "")
    heads = [line.partition(",")[0] for line in out.splitlines() if ", device " in line]
    networks = ["teacher 1 of 2: lenet5_teacher", "teacher 2 of 2: lenet5_teacher", "kd: lenet5_student"]
    assert heads == [f"{network} on digits" for network in networks]
    assert len(list((tmp_path / "results" / "trials").iterdir())) == 3
    code, out, err = asked(config, "--set", "teacher.ensemble.weights=[1, 2]", "--set", "teacher.ensemble.of.1.seed=1")
    assert (code, out.count("epoch "), len(list((tmp_path / "results" / "trials").iterdir()))) == (0, 5, 4)
    code, out, err = asked(config, "--set", "teacher.ensemble.weights=[0, 0]")
    assert (code, out) == (2, "")
    assert "--set teacher.ensemble.weights: must have one above 0" in err


def test_a_chain_of_teachers_is_trained_from_its_end(asked) -> None:
    below = KD["teacher"] | {"data": {"resolution": 20}}
    teacher = {"model": "lenet5_half", "epochs": 1, "method": KD["method"], "teacher": below}
    code, out, err = asked(recipe(**KD | {"teacher": teacher}))
    assert (code, err) == (0, "")
    begun = [line.partition(" on digits, ")[0] for line in out.splitlines() if " on digits, " in line]
    assert begun == ["teacher of the teacher: lenet5_teacher", "teacher: lenet5_half", "kd: lenet5_student"]
    teacher["teacher"] = below | {"optimizer": {"name": "sgd", "lr": 1e18}}
    code, _, err = asked(recipe(**KD | {"teacher": teacher}))
    assert (code, err.partition(": ")[0]) == (1, "teacher of the teacher")


@pytest.mark.parametrize("who", ["none", "teacher"])
def test_a_training_that_fails_is_exit_code_1_with_its_reason_and_so_is_asking_again(asked, who: str) -> None:
    wild = {"optimizer": {"name": "sgd", "lr": 1e9}}
    config = recipe(**wild) if who == "none" else recipe(**KD | {"teacher": KD["teacher"] | wild})
    for _ in range(2):
        code, out, err = asked(config)
        assert code == 1
        assert re.fullmatch(who + r": failed: epoch \d, step \d+: .*(nan|inf).*\n", err)
        assert "kd:" not in out  # the student is not begun after its teacher failed


PLAIN = json.dumps(recipe().model_dump(mode="json", exclude_none=True))


@pytest.mark.parametrize(
    ("text", "arguments", "sentence"),
    [
        (PLAIN.replace('"epochs"', '"epoch"'), (), r"best.yaml:1: .*epoch.*epochs"),
        (json.dumps({"recipe": {}, "study": {}}), (), r"best.yaml:1: is a sweep.*kdtrain sweep best.yaml"),
        (PLAIN.replace('"digits"', '"mnist"'), ("--data", "nowhere"), r"^best.yaml:1: data: mnist is not .*nowhere"),
        (PLAIN, ("--set", "data.labelled_per_class=99"), r"^--set data.labelled_per_class: must be .* got 99\n$"),
        (PLAIN, ("--set", "data.exclude_classes=[x]"), r"^--set data.exclude_classes: digits has no class 'x'"),
        (PLAIN, ("--set", "class_weights=[1, 2]"), r"^--set class_weights: must have .* 10 classes, got 2\n$"),
        (PLAIN, ("--threads", "0"), r"--threads: must be at least 1, got 0"),
        (PLAIN, ("--threads", "99999999999"), r"--threads: must be at most 1024, got 99999999999"),
        (PLAIN, ("--checkpoint-every-steps", "99999999999"), r"--checkpoint-every-steps: must be at most 1000000000"),
        (PLAIN, ("--loaders", "65"), r"--loaders: must be at most 64, got 65"),
        (PLAIN, ("--data", ""), r"--data: must name a folder or a URL, got nothing"),
        (PLAIN, ("--results", "~nobody-of-this-name"), r"--results: ~nobody-of-this-name is no path"),
        (PLAIN, ("--device", "toaster"), r"--device: toaster cannot be used"),
        (PLAIN, ("--device", "meta"), r"--device: meta cannot be used"),
        (PLAIN, ("--results", "best.yaml"), r"best.yaml: cannot be written.*--results"),
    ],
    ids=["unknown key", "sweep", "absent data", "labels", "class", "weights",
         "threads", "many threads", "many steps", "loaders", "no data",
         "unknown home", "device", "no such kind of device", "results is a file"],
)  # fmt: skip
def test_a_mistake_is_a_sentence_on_stderr_exit_code_2_and_nothing_left_behind(
    asked, text: str, arguments: tuple[str, ...], sentence: str
) -> None:
    code, out, err = asked(text, *arguments)
    assert code == 2
    assert re.search(sentence, err), err
    assert "Traceback" not in out + err
    assert left_behind() == []


FINISHED = """
data: {name: digits, resolution: 16, limit_per_class: 6}
student: {model: lenet5_student}
teacher:
  TEACHERS
method: {name: kd, temperature: 2, balance: {alpha: 0.5}}
optimizer: {name: sgd, lr: 0.1}
lr_schedule: {name: constant}
batch_size: 8
epochs: 1
"""


@pytest.mark.parametrize(
    ("teachers", "place"),
    [
        ("{model: lenet5_half,\n   trained: none.pth}", "best.yaml:6: teacher.trained"),
        ("- {model: lenet5_half}\n  - {model: lenet5_half, trained: none.pth}", "best.yaml:6: teacher.1.trained"),
        (
            "ensemble:\n    of:\n    - {model: lenet5_half}\n    - {model: lenet5_half, trained: none.pth}",
            "best.yaml:8: teacher.ensemble.of.1.trained",
        ),
    ],
    ids=["one", "list", "ensemble"],
)
def test_the_absent_file_of_one_of_several_teachers_has_its_line_and_number(asked, teachers: str, place: str) -> None:
    code, out, err = asked(FINISHED.replace("TEACHERS", teachers))
    assert (code, out) == (2, "")
    assert err.startswith(f"{place}: none.pth ")
    assert left_behind() == []


def test_labels_that_are_hidden_entirely_are_told_with_their_line(asked, tmp_path: Path) -> None:
    for split in ("train/cat", "train/dog", "val/cat", "val/dog", "test/cat", "test/dog"):
        paint(tmp_path / "data" / "pets" / split / "1.png")
    data = "{name: image_folder, folder: pets, resolution: 16, labelled_fraction: 0.1}"
    text = FINISHED.replace("{name: digits, resolution: 16, limit_per_class: 6}", data)
    code, _, err = asked(text.replace("TEACHERS", "{model: lenet5_half}"), "--data", "data")
    assert code == 2
    assert err.startswith("best.yaml:2: data.labelled_fraction: ")


def test_the_student_alone_is_called_none_and_a_store_of_a_newer_schema_is_refused(asked, tmp_path: Path) -> None:
    out = asked(recipe())[1]
    assert [line.split(":")[0] for line in out.splitlines() if not line.startswith("epoch")] == ["none", "none"]
    file = Store(tmp_path / "results").trial(trial_id(recipe(), NO_DATA)).path / "outcome.json"
    file.write_text(json.dumps({"schema": 99}))
    code, _, err = asked(recipe())
    assert code == 2
    assert "of schema 99, written by a newer kdtrain" in err
    assert json.loads(file.read_text()) == {"schema": 99}


def test_a_finished_teacher_is_evaluated_first_and_its_weights_are_named(asked, tmp_path: Path) -> None:
    """The first start evaluates it, and each one says its accuracy; what names one class only has learned nothing."""
    taught = trained(recipe(student={"model": "lenet5_teacher"}))
    none = {name: torch.zeros_like(value) for name, value in taught.weights.items()}
    torch.save({"model": taught.weights, "model_ema": none}, tmp_path / "t.pth")
    teacher = {"model": "lenet5_teacher", "trained": "t.pth"}
    for _ in range(2):
        code, out, err = asked(recipe(**KD | {"teacher": teacher}, epochs=1))
        assert (code, err) == (0, "")
        assert out.splitlines()[:2] == [
            "lenet5_teacher takes the weights model of t.pth; weights_key chooses others: model_ema",
            f"teacher: lenet5_teacher from t.pth: val accuracy {taught.outcome['best']['val/accuracy']:.4f}",
        ]
    code, out, err = asked(recipe(**KD | {"teacher": teacher | {"weights_key": "model_ema"}}, epochs=1))
    assert (code, err) == (0, "")
    chance = "not better than the most frequent class (10.00% of the validation images): nothing was learned"
    assert out.splitlines()[:3] == [
        "lenet5_teacher takes the weights model_ema of t.pth",
        "teacher: lenet5_teacher from t.pth: val accuracy 0.1000",
        f"teacher: {chance}",
    ]


def test_a_signal_ends_the_training_with_the_sentence_that_it_continues(asked, monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("kdtrain.api.training.train_part", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
    code, _, err = asked(recipe())
    assert (code, err) == (130, "stopped; the same command continues from the newest checkpoint\n")
    assert signal.getsignal(signal.SIGTERM) is before


def test_folders_of_the_compiler_that_a_kill_has_left_are_removed_and_those_in_use_are_kept(
    asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    for name in ("kdtrain-compiled-killed", "kdtrain-compiled-busy", "other"):
        (folder / name / "x").mkdir(parents=True)
    with locked(folder / "kdtrain-compiled-busy", wait=False):
        assert asked(recipe(seed=7))[0] == 0
    assert sorted(path.name for path in folder.iterdir()) == ["kdtrain-compiled-busy", "other"]
