"""A report never computes from damaged data: one changed byte or a lost key anywhere is named, or changes nothing."""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_up_study import MadeUpStudy, npz, whole_study

from analysis import report
from analysis.findings import Pictures, find_all
from analysis.frame import read_study
from analysis.report import compose, write_report
from kdtrain.errors import DamagedFile, UserError
from kdtrain.storage.folder import append_row
from kdtrain.storage.sealed import DIGEST

KINDS = ("study.json", "record.jsonl", "pictures.npz", "recipe.json", "epochs.jsonl", "outcome.json", "predictions.npz")


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> "Stored":
    """A small finished study with every kind of file; tests put back what they have changed."""
    made = whole_study(tmp_path_factory.mktemp("damaged"), searched=6, seeds=2)
    arrays = npz(lr_steps=np.arange(4), lr_rates=np.linspace(0.1, 0.0, 4))
    (made.folder / "pictures.npz").write_bytes(arrays)
    digest = hashlib.sha256(arrays).hexdigest()
    made.plan("pictures", 0, trial_id="confirm0000")
    made.end("pictures", 0, "confirm0000", "complete", sha256=digest)
    return Stored(made)


class Stored:
    def __init__(self, made: MadeUpStudy) -> None:
        self.folder = made.folder
        self.files = {kind: sorted(made.folder.parent.rglob(kind)) for kind in KINDS}
        assert all(self.files.values())
        self.report = self.reported()

    def reported(self) -> tuple[str, str | None]:
        """Return the report's tables, and why there are no arrays of pictures."""
        study = read_study(self.folder)
        findings = find_all(study)
        return compose(study, findings, Pictures()), findings.no_arrays


def without_a_key(value: Any, draw: Callable[..., Any]) -> Any:
    """Return a tree without one key, at any depth."""
    if not isinstance(value, dict) or not value:
        return value
    key = draw(st.sampled_from(sorted(value)))
    if isinstance(value[key], dict) and value[key] and draw(st.booleans()):
        return {**value, key: without_a_key(value[key], draw)}
    return {name: each for name, each in value.items() if name != key}


@st.composite
def damages(draw: Callable[..., Any], files: dict[str, list[Path]]) -> tuple[Path, bytes]:
    """Return a file and its content with a byte flipped, or with a key less."""
    path = draw(st.sampled_from(files[draw(st.sampled_from(KINDS))]))
    data = path.read_bytes()
    if path.suffix == ".npz" or draw(st.booleans()):
        at, bit = draw(st.integers(0, len(data) - 1)), draw(st.integers(0, 7))
        return path, data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]
    if path.suffix == ".json":
        return path, json.dumps(without_a_key(json.loads(data), draw)).encode()
    lines = data.splitlines(keepends=True)
    at = draw(st.integers(0, len(lines) - 1))
    lines[at] = json.dumps(without_a_key(json.loads(lines[at]), draw)).encode() + b"\n"
    return path, b"".join(lines)


def what_is_said(report: Callable[[], Any]) -> str:
    """Return a report, or the sentence in its place; any other exception is a failure."""
    try:
        return str(report())
    except UserError as error:
        return str(error)


def check_that_damage_is_named_or_changes_nothing(stored: Stored, examples: int) -> None:
    @settings(max_examples=examples, deadline=None, derandomize=True, database=None, suppress_health_check=HealthCheck)
    @given(damages(stored.files))
    def check(damage: tuple[Path, bytes]) -> None:
        path, data = damage
        before = path.read_bytes()
        path.write_bytes(data)
        found = what_is_said(stored.reported)
        path.write_bytes(before)
        assert found == str(stored.report) or path.name in found

    check()


def test_damage_of_any_file_is_named_or_changes_nothing(stored: Stored) -> None:
    check_that_damage_is_named_or_changes_nothing(stored, 60)


@pytest.mark.slow
def test_damage_of_any_file_is_named_or_changes_nothing_300_times(stored: Stored) -> None:
    check_that_damage_is_named_or_changes_nothing(stored, 300)


@pytest.mark.long
def test_damage_of_any_file_is_named_or_changes_nothing_10_000_times(stored: Stored) -> None:
    check_that_damage_is_named_or_changes_nothing(stored, 10_000)


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MadeUpStudy:
    monkeypatch.setattr(report, "draw", lambda study, findings: Pictures())
    made = MadeUpStudy(tmp_path / "results" / "small", trials=2)
    made.trial("search", 0, [0.5, 0.6], right_N=np.arange(360) % 2 == 0)
    made.trial("search", 1, [0.5, 0.7])
    return made


@pytest.fixture
def earlier(small: MadeUpStudy) -> MadeUpStudy:
    """The same, as a version without digests has written it."""
    for path in small.folder.parent.rglob("*.json"):
        value = {key: each for key, each in json.loads(path.read_text()).items() if key != DIGEST}
        path.write_text(json.dumps(value | {"schema": value["schema"] - 1}))
    for path in small.folder.parent.rglob("*.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        kept = [{key: each for key, each in row.items() if key != DIGEST} for row in rows]
        path.write_text("".join(json.dumps(row) + "\n" for row in kept))
    return small


def test_files_of_an_earlier_version_are_read_and_counted(earlier: MadeUpStudy) -> None:
    study = read_study(earlier.folder)
    assert (study.unverified, list(study.trials["val/accuracy"])) == (2 + 2 * 3, [0.6, 0.7])
    assert "8 of the files" in write_report(earlier.folder).read_text()
    append_row(earlier.folder / "record.jsonl", {"event": "finished", "time": 1.0})
    assert read_study(earlier.folder).unverified == 8, "its first lines are as they were"


def test_a_report_of_sealed_files_does_not_speak_of_digests(small: MadeUpStudy) -> None:
    assert read_study(small.folder).unverified == 0
    assert "digest" not in write_report(small.folder).read_text()


def damaged_objects(name: str) -> Iterator[Any]:
    yield from ("text", [1], {}, {"schema": 1}, {"schema": "1"}, None, 3)
    if name == "outcome.json":
        yield from ({"schema": 1, "state": "complete", "epochs": 2}, {"schema": 1, "state": "complete", "best": "x"})


@pytest.mark.parametrize("name", ["study.json", "recipe.json", "outcome.json"])
def test_an_object_of_another_form_is_no_traceback(name: str, earlier: MadeUpStudy) -> None:
    (path, *_) = sorted(earlier.folder.parent.rglob(name))
    for value in damaged_objects(name):
        path.write_text(json.dumps(value))
        with pytest.raises(UserError, match=rf"{path}|{earlier.folder}"):
            write_report(earlier.folder)


@pytest.mark.parametrize("line", ['{}', '{"event": "ended"}', '{"event": "planned", "time": 1, "stage": "search"}',
    '{"event": "planned", "time": 1, "stage": [], "number": 1}', '{"event": "winner", "time": "then"}',
    '{"event": "round", "time": 1, "race": "search", "round": 1, "racers": "none"}'])  # fmt: skip
def test_an_event_of_another_form_is_no_traceback(line: str, earlier: MadeUpStudy) -> None:
    path = earlier.folder / "record.jsonl"
    path.write_text(path.read_text() + line + "\n")
    assert str(earlier.folder) in what_is_said(lambda: write_report(earlier.folder))


@pytest.mark.parametrize("content", [b"", b"PK", b"\x93NUMPY", b"PK\x05\x06" + bytes(18), b"no arrays", bytes(500)])
def test_arrays_that_cannot_be_read_are_named(content: bytes, small: MadeUpStudy) -> None:
    trial = small.store.trial("search0000")
    path = trial.path / "predictions.npz"
    for sealed in (True, False):
        path.write_bytes(content)
        if not sealed:
            trial.write_outcome({**(trial.outcome() or {}), "files": None})
        with pytest.raises(DamagedFile, match=str(path)):
            read_study(small.folder).predictions("search0000")


@pytest.mark.parametrize("rows", [[1], [1, 1], [2, 1], [1, 2, 3], [1, 2, 2], []])
def test_rows_that_are_not_those_that_the_outcome_counts_are_damage(rows: list[int], small: MadeUpStudy) -> None:
    trial = small.store.trial("search0000")
    kept = {row["epoch"]: {**row} for row in trial.epochs()}
    (trial.path / "epochs.jsonl").unlink()
    for epoch in rows:
        trial.append_epoch({**kept[min(epoch, 2)], "epoch": epoch})
    with pytest.raises(DamagedFile, match=r"search0000/outcome\.json"):
        read_study(small.folder)
