"""A folder of results behaves alike here and at a URL; at a URL a claim says who writes."""

import json
import threading
import time
from pathlib import Path

import pytest

from kdtrain.errors import UserError
from kdtrain.storage import folder as folder_module
from kdtrain.storage.folder import CLAIM, Folder, Superseded
from kdtrain.storage.remote import AtUrl, results_folder
from kdtrain.trials.store import Store


def seen_from(node: str, tmp_path: Path) -> Folder:
    """The results at a URL, as one of several nodes has them."""
    return Folder(tmp_path / node, AtUrl(f"file://{tmp_path}/there", "--results"))


@pytest.fixture(params=["here", "there"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    return Folder(tmp_path / "here") if request.param == "here" else seen_from("a", tmp_path)


def test_what_was_written_is_read(folder: Folder) -> None:
    own = folder.folder("trials").folder("x")
    assert own.read("a.json") is None
    assert not own.has("a.json")
    own.write("a.json", b"1")
    own.append("rows.jsonl", {"epoch": 1})
    own.append("rows.jsonl", {"epoch": 2})
    assert own.read("a.json") == b"1"
    assert own.has("a.json")
    assert own.rows("rows.jsonl") == [{"epoch": 1}, {"epoch": 2}]
    assert own.names("*") == ["a.json", "rows.jsonl"]
    assert own.file("a.json").read_bytes() == b"1"
    own.remove("a.json")
    own.remove("a.json")
    assert own.read("a.json") is None
    assert not own.file("a.json").exists()
    folder.clear()
    assert own.names("*") == []


def test_another_node_sees_at_once_what_one_has_written(tmp_path: Path) -> None:
    one, other = seen_from("a", tmp_path), seen_from("b", tmp_path)
    one.write("row", b"old")
    assert other.read("row") == b"old"
    one.write("row", b"new")
    assert other.read("row") == b"new"
    assert other.file("row").read_bytes() == b"new"
    one.remove("row")
    assert other.read("row") is None
    assert not (other.path / "row").exists()


def test_what_has_not_changed_is_not_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = seen_from("a", tmp_path), seen_from("b", tmp_path)
    one.folder("trials").folder("x").write("weights.safetensors", b"w")
    one.folder("trials").folder("x").write("outcome.json", b"o")
    other.fetch_all("outcome.json", "recipe.json")
    assert [path.name for path in other.path.rglob("*") if path.is_file()] == ["outcome.json"]
    monkeypatch.setattr(AtUrl, "read", lambda self, name: pytest.fail(f"{name} was fetched again"))
    other.fetch_all("outcome.json")


def test_a_store_at_a_url_is_the_store_of_every_node(tmp_path: Path) -> None:
    one, other = (Store(seen_from(node, tmp_path)).trial("0123") for node in "ab")
    one.write_recipe({"recipe": {}})
    for step in (1, 2, 3):
        one.append_epoch({"epoch": step})
        one.write_checkpoint(step, b"checkpoint %d" % step)
    assert other.read_checkpoint() == b"checkpoint 3"
    assert len(other.files.names("checkpoint-*")) == 2
    other.keep_epochs(2)
    other.append_epoch({"epoch": 3, "again": True})
    assert one.epochs() == [{"epoch": 1}, {"epoch": 2}, {"epoch": 3, "again": True}]
    other.write_outcome({"state": "complete"})
    other.remove_checkpoints()
    assert one.outcome() == {"schema": 1, "state": "complete"}
    assert one.read_checkpoint() is None


def test_whoever_was_given_up_for_dead_writes_nothing_more(tmp_path: Path) -> None:
    """A node that was cut off goes on training: its trial has been begun again elsewhere."""
    ghost, successor = seen_from("a", tmp_path), seen_from("b", tmp_path)
    with ghost.held("digits search-3", wait=True):
        ghost.write("epochs.jsonl", b"ghost")
        with successor.held("digits search-3", wait=True):
            successor.write("epochs.jsonl", b"successor")
            with pytest.raises(Superseded, match="another process has taken it over"):
                ghost.write("epochs.jsonl", b"ghost again")
            with pytest.raises(Superseded):
                ghost.remove("epochs.jsonl")
    assert successor.read("epochs.jsonl") == b"successor"
    assert successor.read(CLAIM) is None


def test_whoever_is_released_by_another_writes_nothing_more(tmp_path: Path) -> None:
    """A study prunes a trial that is at work on another node."""
    trial, study = seen_from("a", tmp_path), seen_from("b", tmp_path)
    with trial.held("digits search-3", wait=True):
        study.release()
        with pytest.raises(Superseded):
            trial.write("outcome.json", b"complete")
    assert study.names("*") == []


def test_a_claim_of_another_is_waited_for_while_its_holder_speaks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_module, "BEAT_S", 0.1)
    one, other = seen_from("a", tmp_path), seen_from("b", tmp_path)
    order = []
    with one.held("sweep one", wait=True):
        with pytest.raises(BlockingIOError, match="is held by sweep one on"), other.held("sweep two", wait=False):
            pass
        waiting = threading.Thread(target=lambda: _hold(other, "sweep two", order))
        waiting.start()
        time.sleep(1.0)
        order.append("one ends")
    waiting.join()
    assert order == ["one ends", "sweep two"]


def _hold(folder: Folder, by: str, order: list[str]) -> None:
    with folder.held(by, wait=True):
        order.append(by)


def test_the_claim_of_a_holder_that_is_silent_is_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_module, "SILENCE_S", 0.5)
    there = seen_from("a", tmp_path)
    claim = {"id": "1", "by": "another", "host": "a node that is gone", "pid": 1, "beat": 3}
    there.write(CLAIM, json.dumps(claim).encode())
    started = time.monotonic()
    with there.held("us", wait=False):
        assert time.monotonic() - started > 0.5
        there.write("x", b"")


def test_the_claim_of_a_process_that_died_on_this_machine_is_nobodys(tmp_path: Path) -> None:
    there = seen_from("a", tmp_path)
    with there.held("us", wait=True):
        claim = json.loads(there.read(CLAIM) or b"")
    there.write(CLAIM, json.dumps(claim | {"pid": 2**22 + 1, "by": "another"}).encode())
    started = time.monotonic()
    with there.held("us", wait=False):
        assert time.monotonic() - started < folder_module.SILENCE_S / 2


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("s3://key:secret@bucket/results", "leave the secret out and set it in the environment"),
        ("nonsense://bucket/results", "cannot be reached"),
        ("file://relative", "cannot be reached .*relative"),
    ],
)
def test_a_url_that_cannot_be_used_is_a_sentence(written: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        results_folder(written)
    assert "secret@" not in str(caught.value)


def test_a_url_has_its_copies_in_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = results_folder(f"file://{tmp_path}/there")
    assert folder.path.parent == tmp_path / "cache" / "kdtrain" / "results"
    assert str(folder.folder("digits_kd")) == f"file://{tmp_path}/there/digits_kd"
    folder.distant.url += "?region=x"  # type: ignore[union-attr]
    assert str(folder.folder("digits_kd")) == f"file://{tmp_path}/there/digits_kd?region=x"
