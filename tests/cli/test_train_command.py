"""`kdtrain train RECIPE.yaml`: exit codes and sentences."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from trainings import CPU, KD, NO_DATA, recipe, timeless, trained

from kdtrain.cli.train import main
from kdtrain.runtime.device import device_name
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
    lines = out.splitlines()
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
    assert asked(config)[:2] == (0, "".join(f"{line}\n" for line in lines if not line.startswith("epoch")))


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
        (json.dumps({"recipe": {}, "study": {}}), (), r"best.yaml: is a sweep.*kdtrain sweep best.yaml"),
        (PLAIN.replace('"digits"', '"mnist"'), ("--data", "nowhere"), r"recipe.data: mnist is not there .*nowhere"),
        (PLAIN, ("--threads", "0"), r"--threads: must be at least 1, got 0"),
        (PLAIN, ("--device", "toaster"), r"--device: toaster cannot be used"),
        (PLAIN, ("--device", "meta"), r"--device: meta cannot be used"),
        (PLAIN, ("--results", "best.yaml"), r"best.yaml: cannot be written.*--results"),
    ],
    ids=["unknown key", "sweep", "absent data", "threads", "device", "no such kind of device", "results is a file"],
)  # fmt: skip
def test_a_mistake_is_a_sentence_on_stderr_exit_code_2_and_nothing_left_behind(
    asked, text: str, arguments: tuple[str, ...], sentence: str
) -> None:
    code, out, err = asked(text, *arguments)
    assert code == 2
    assert re.search(sentence, err), err
    assert "Traceback" not in out + err
    assert left_behind() == []


def test_the_student_alone_is_called_none_and_a_store_of_a_newer_schema_is_refused(asked, tmp_path: Path) -> None:
    out = asked(recipe())[1]
    assert [line.split(":")[0] for line in out.splitlines() if not line.startswith("epoch")] == ["none", "none"]
    file = Store(tmp_path / "results").trial(trial_id(recipe(), NO_DATA)).path / "outcome.json"
    file.write_text(json.dumps({"schema": 99}))
    code, _, err = asked(recipe())
    assert code == 2
    assert "of schema 99, written by a newer kdtrain" in err
    assert json.loads(file.read_text()) == {"schema": 99}
