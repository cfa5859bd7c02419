"""The store: what stands under its name is whole, whatever was cut off."""

import json
import os
from pathlib import Path

import pytest

from kdtrain.errors import UserError
from kdtrain.storage import folder
from kdtrain.storage.folder import append_row, read_rows, write_bytes
from kdtrain.trials.store import SCHEMA, Store, read_json, write_json


def test_a_write_replaces_the_whole_file_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
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
def test_what_is_not_json_is_never_written(tmp_path: Path, number: float) -> None:
    write_json(tmp_path / "outcome.json", {"schema": SCHEMA, "value": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "outcome.json", {"schema": SCHEMA, "value": number})
    append_row(tmp_path / "epochs.jsonl", {"epoch": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        append_row(tmp_path / "epochs.jsonl", {"epoch": 2, "value": number})
    assert read_json(tmp_path / "outcome.json")["value"] == 1
    assert (tmp_path / "epochs.jsonl").read_text() == '{"epoch": 1}\n'


def test_numbers_come_back_bit_for_bit(tmp_path: Path) -> None:
    row = {"third": 1 / 3, "tiny": 5e-324, "large": 1.7976931348623157e308, "count": 2**53}
    append_row(tmp_path / "epochs.jsonl", row)
    assert read_rows(tmp_path / "epochs.jsonl") == [row]


@pytest.mark.parametrize("cut", range(1, 14))
def test_a_torn_last_line_is_left_out_and_spoils_nothing_that_follows(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "epochs.jsonl"
    append_row(path, {"epoch": 1})
    append_row(path, {"epoch": 2})
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    assert read_rows(path) == ([{"epoch": 1}, {"epoch": 2}] if cut == 1 else [{"epoch": 1}])
    append_row(path, {"epoch": 3})
    assert [row["epoch"] for row in read_rows(path)] == ([1, 2, 3] if cut == 1 else [1, 3])


def test_bytes_that_are_no_text_are_left_out_of_the_rows(tmp_path: Path) -> None:
    path = tmp_path / "epochs.jsonl"
    path.write_bytes(b'{"epoch": 1}\n\xff\xfe\x00\n[1]\n3\n\n{"epoch": 2}\n')
    assert read_rows(path) == [{"epoch": 1}, {"epoch": 2}]
    assert read_rows(tmp_path / "absent.jsonl") == []


def test_a_newer_schema_is_refused_with_the_file_and_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "outcome.json"
    path.write_text(json.dumps({"schema": SCHEMA + 1}))
    with pytest.raises(UserError) as caught:
        read_json(path)
    (problem,) = caught.value.problems
    assert problem.startswith(f"{path}: is of schema {SCHEMA + 1}, written by a newer kdtrain")
    assert "upgrade kdtrain or name another folder with --results" in problem


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"{}", b'{"schema": "1"}', b"\xff\xfe"])
def test_what_is_no_object_of_the_store_is_refused_with_its_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "outcome.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"outcome.json: .* remove it to have it made again"):
        read_json(path)


def test_a_trial_that_is_not_there_has_neither_recipe_nor_rows_nor_outcome(tmp_path: Path) -> None:
    trial = Store(tmp_path).trial("0" * 16)
    assert (trial.recipe(), trial.epochs(), trial.outcome(), trial.read_checkpoint()) == (None, [], None, None)
    assert not trial.path.exists()
    assert list(Store(tmp_path).trials()) == []


def test_trials_are_listed_by_id_and_only_where_a_recipe_stands(tmp_path: Path) -> None:
    for trial_id in ("b", "a"):
        Store(tmp_path).trial(trial_id).write_recipe({"trial_id": trial_id})
    Store(tmp_path).trial("c").append_epoch({"epoch": 1})
    assert [trial.trial_id for trial in Store(tmp_path).trials()] == ["a", "b"]


def test_the_last_two_checkpoints_are_kept(tmp_path: Path) -> None:
    trial = Store(tmp_path).trial("a")
    for epoch in range(8, 13):
        trial.write_checkpoint(epoch, f"epoch {epoch}".encode())
        assert len(list(trial.path.iterdir())) <= 2
    assert trial.read_checkpoint() == b"epoch 12"
    trial.remove_checkpoints()
    assert list(trial.path.iterdir()) == []


def test_leftover_checkpoints_are_those_of_trials_with_an_outcome(tmp_path: Path) -> None:
    store = Store(tmp_path)
    ended, cut = store.trial("ended"), store.trial("cut")
    for trial in (ended, cut):
        trial.write_checkpoint(1, b"first epoch")
    ended.write_outcome({"state": "complete"})
    store.remove_leftovers(["ended", "cut", "never begun"])
    assert not ended.has_checkpoints()
    assert cut.read_checkpoint() == b"first epoch"
    assert not store.trial("never begun").path.exists()


def test_a_checkpoint_with_changed_or_cut_bytes_is_passed_over_for_the_one_before_it(tmp_path: Path) -> None:
    trial = Store(tmp_path).trial("a")
    trial.write_checkpoint(1, b"first epoch")
    trial.write_checkpoint(2, b"second epoch")
    newest = max(trial.path.iterdir())
    for damaged in (b"second epocH", b"second", b"", b"second epoch and more"):
        newest.write_bytes(damaged)
        assert trial.read_checkpoint() == b"first epoch"
    min(trial.path.iterdir()).write_bytes(b"")
    assert trial.read_checkpoint() is None


def test_a_checkpoint_that_was_being_written_at_a_kill_is_not_read(tmp_path: Path) -> None:
    trial = Store(tmp_path).trial("a")
    trial.write_checkpoint(1, b"first epoch")
    name = next(trial.path.iterdir()).name
    (trial.path / f".{name}.k3x").write_bytes(b"first")
    assert trial.read_checkpoint() == b"first epoch"


def test_rows_past_an_epoch_are_dropped_whole(tmp_path: Path) -> None:
    trial = Store(tmp_path).trial("a")
    for epoch in range(1, 5):
        trial.append_epoch({"epoch": epoch, "value": epoch / 3})
    trial.keep_epochs(2)
    assert trial.epochs() == [{"epoch": 1, "value": 1 / 3}, {"epoch": 2, "value": 2 / 3}]
    trial.keep_epochs(0)
    assert trial.epochs() == []
