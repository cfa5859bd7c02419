"""The store: a reader sees whole files, whatever a kill has cut off."""

import json
import os
from pathlib import Path

import pytest

from kdtrain.errors import UserError
from kdtrain.storage import folder
from kdtrain.storage.folder import LocalFolder, append_row, read_rows, write_bytes
from kdtrain.storage.sealed import sealed_object
from kdtrain.trials.store import SCHEMA, Store, TrialFolder, read_object


@pytest.fixture
def trial(tmp_path: Path) -> TrialFolder:
    return Store(tmp_path).trial("a")


def test_a_write_replaces_the_whole_file_and_leaves_no_other(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "file.bin"
    write_bytes(path, b"old and longer")
    write_bytes(path, b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(path.parent) == ["file.bin"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_an_exception_in_the_middle_of_a_write_leaves_the_old_file(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "outcome.json"
    write_bytes(path, b"old")

    def stopped(source: str, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(folder.os, "replace", stopped)
    with pytest.raises(KeyboardInterrupt):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["outcome.json"]


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_json_lacks_are_never_written(tmp_path: Path, number: float) -> None:
    rows = tmp_path / "epochs.jsonl"
    append_row(rows, {"epoch": 1})
    with pytest.raises(ValueError, match="JSON"):
        sealed_object({"value": number})
    with pytest.raises(ValueError, match="JSON"):
        append_row(rows, {"epoch": 2, "value": number})
    assert read_rows(rows) == [{"epoch": 1}]


def test_numbers_are_read_back_bit_for_bit(tmp_path: Path) -> None:
    row = {"third": 1 / 3, "tiny": 5e-324, "large": 1.7976931348623157e308, "count": 2**53}
    append_row(tmp_path / "epochs.jsonl", row)
    assert read_rows(tmp_path / "epochs.jsonl") == [row]


def test_an_incomplete_last_line_is_left_out_and_damages_no_later_row(tmp_path: Path) -> None:
    path = tmp_path / "epochs.jsonl"
    whole = b'{"epoch": 1}\n{"epoch": 2}\n'
    for cut in range(1, 14):
        path.write_bytes(whole[:-cut])
        known = [1, 2] if cut == 1 else [1]
        assert [row["epoch"] for row in read_rows(path)] == known
        append_row(path, {"epoch": 3})
        assert [row["epoch"] for row in read_rows(path)] == [*known, 3]


def test_lines_that_are_no_json_objects_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "epochs.jsonl"
    path.write_bytes(b'{"epoch": 1}\n\xff\xfe\x00\n[1]\n3\n\n{"epoch": 2}\n')
    assert read_rows(path) == [{"epoch": 1}, {"epoch": 2}]
    assert read_rows(tmp_path / "absent.jsonl") == []


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1]", b"{}", b'{"schema": "1"}', b"\xff\xfe", json.dumps({"schema": SCHEMA + 1}).encode()]
)
def test_damaged_files_and_newer_schemas_are_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "outcome.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match="schema 3.*--results" if b"3" in content else "remove it") as caught:
        read_object(LocalFolder(tmp_path), "outcome.json")
    assert str(caught.value).startswith(f"{path}: ")


def test_a_trial_that_has_not_begun_is_empty_and_makes_no_folder(tmp_path: Path, trial: TrialFolder) -> None:
    assert (trial.recipe(), trial.epochs(), trial.outcome(), trial.read_checkpoint()) == (None, [], None, None)
    assert not trial.path.exists()
    assert list(Store(tmp_path).trials()) == []


def test_trials_with_a_recipe_are_listed_by_id(tmp_path: Path) -> None:
    for trial_id in ("b", "a"):
        Store(tmp_path).trial(trial_id).write_recipe({"trial_id": trial_id})
    Store(tmp_path).trial("c").append_epoch({"epoch": 1})
    assert [trial.trial_id for trial in Store(tmp_path).trials()] == ["a", "b"]


def test_the_last_two_checkpoints_are_kept(trial: TrialFolder) -> None:
    for epoch in range(8, 13):
        trial.write_checkpoint(epoch, f"epoch {epoch}".encode())
        assert len(list(trial.path.iterdir())) <= 2
    assert trial.read_checkpoint() == b"epoch 12"
    trial.remove_checkpoints()
    assert list(trial.path.iterdir()) == []


def test_leftover_checkpoints_of_trials_with_an_outcome_are_removed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    ended, cut = store.trial("ended"), store.trial("cut")
    for each in (ended, cut):
        each.write_checkpoint(1, b"first epoch")
    ended.write_outcome({"state": "complete"})
    store.remove_leftovers(["ended", "cut", "never begun"])
    assert not ended.has_checkpoints()
    assert cut.read_checkpoint() == b"first epoch"
    assert not store.trial("never begun").path.exists()


def test_a_damaged_checkpoint_is_skipped_for_the_one_before_it(trial: TrialFolder) -> None:
    trial.write_checkpoint(1, b"first epoch")
    trial.write_checkpoint(2, b"second epoch")
    first, newest = sorted(trial.path.iterdir())
    for damaged in (b"recond epoch", b"second epocH", b"second", b"", b"second epoch and more", bytes(12)):
        newest.write_bytes(damaged)
        assert trial.read_checkpoint() == b"first epoch"
    first.write_bytes(b"")
    assert trial.read_checkpoint() is None


def test_a_checkpoint_that_a_kill_has_cut_off_is_not_read_and_is_removed(trial: TrialFolder) -> None:
    trial.write_checkpoint(1, b"first epoch")
    (first,) = trial.path.iterdir()
    temporary = first.with_name(f".{first.name}.k3x")
    temporary.write_bytes(b"first")
    assert trial.read_checkpoint() == b"first epoch"
    trial.write_checkpoint(2, b"second epoch")
    assert not temporary.exists()


def test_rows_after_an_epoch_are_removed(trial: TrialFolder) -> None:
    for epoch in range(1, 5):
        trial.append_epoch({"epoch": epoch, "value": epoch / 3})
    trial.keep_epochs(2)
    assert trial.epochs() == [{"epoch": 1, "value": 1 / 3}, {"epoch": 2, "value": 2 / 3}]
    trial.keep_epochs(0)
    assert trial.epochs() == []
