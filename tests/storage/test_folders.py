"""A local folder and one at a URL behave alike; at a URL a lease decides which process writes."""

import json
import threading
import time
from pathlib import Path

import pytest

from kdtrain.errors import UserError
from kdtrain.storage import lease as lease_module
from kdtrain.storage.folder import Folder, LocalFolder
from kdtrain.storage.lease import LEASE_FILE, Superseded
from kdtrain.storage.mirror import MirrorFolder, results_folder
from kdtrain.storage.remote import RemoteFiles
from kdtrain.trials.store import SCHEMA, Store


def seen_from(node: str, tmp_path: Path) -> MirrorFolder:
    """Return the folder at a URL with the copies of one of several nodes."""
    return MirrorFolder(tmp_path / node, RemoteFiles(f"file://{tmp_path}/there", "--results"))


@pytest.fixture(params=["local", "url"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    return LocalFolder(tmp_path / "local") if request.param == "local" else seen_from("a", tmp_path)


def test_files_are_written_read_appended_listed_and_removed(folder: Folder) -> None:
    own = folder.folder("trials").folder("x")
    assert own.read("a.json") is None
    assert not own.has("a.json")
    with own.lock("us", wait=False):
        own.write("a.json", b"1")
    own.append("rows.jsonl", {"epoch": 1})
    own.append("rows.jsonl", {"epoch": 2})
    assert own.read("a.json") == b"1"
    assert own.has("a.json")
    assert own.rows("rows.jsonl") == [{"epoch": 1}, {"epoch": 2}]
    assert own.names("[!.]*") == ["a.json", "rows.jsonl"]
    assert own.file("a.json").read_bytes() == b"1"
    own.remove("a.json")
    own.remove("a.json")
    assert own.read("a.json") is None
    assert not own.file("a.json").exists()
    own.revoke_lease()
    own.publish()
    folder.fetch_all("*")
    assert own.rows("rows.jsonl") == [{"epoch": 1}, {"epoch": 2}]
    own.remove_if_empty()
    assert own.names("[!.]*") == ["rows.jsonl"]
    own.remove("rows.jsonl")
    own.remove_if_empty()
    assert not own.path.exists()
    folder.clear()
    assert own.names("*") == []


def test_a_folder_that_is_locked_is_refused_to_others(folder: Folder) -> None:
    again = folder.folder("x")
    with folder.folder("x").lock("us", wait=False), pytest.raises(BlockingIOError), again.lock("them", wait=False):
        pass
    with again.lock("them", wait=False):
        again.write("free again", b"")


def test_another_node_sees_writes_and_removals_at_once(tmp_path: Path) -> None:
    one, other = seen_from("a", tmp_path), seen_from("b", tmp_path)
    for content in (b"old", b"new"):
        one.write("row", content)
        assert other.read("row") == content
        assert other.file("row").read_bytes() == content
    one.remove("row")
    assert other.read("row") is None
    assert not (other.path / "row").exists()


def test_only_matching_files_that_have_changed_are_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = seen_from("a", tmp_path), seen_from("b", tmp_path)
    one.folder("trials").folder("x").write("weights.safetensors", b"w")
    one.folder("trials").folder("x").write("outcome.json", b"o")
    other.fetch_all("outcome.json", "recipe.json")
    assert [path.name for path in other.path.rglob("*") if path.is_file()] == ["outcome.json"]
    monkeypatch.setattr(RemoteFiles, "read", lambda self, name: pytest.fail(f"{name} was fetched again"))
    other.fetch_all("outcome.json")


def test_publish_uploads_all_files_except_hidden_ones(tmp_path: Path) -> None:
    one, other = seen_from("a", tmp_path), seen_from("b", tmp_path)
    one.path.mkdir()
    (one.path / "report.md").write_bytes(b"report")
    (one.path / ".lock").write_bytes(b"")
    one.publish()
    assert other.names("*") == ["report.md"]
    assert other.read("report.md") == b"report"


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
    assert one.outcome() == {"state": "complete", "schema": SCHEMA}
    assert one.read_checkpoint() is None


def test_a_process_whose_lease_was_taken_over_or_revoked_writes_nothing_more(tmp_path: Path) -> None:
    """A node that was cut off continues to train: its trial has been restarted elsewhere, or pruned by the study."""
    cut_off, successor, study = (seen_from(node, tmp_path) for node in "abc")
    with cut_off.lock("digits search-3", wait=True):
        cut_off.write("epochs.jsonl", b"first")
        with successor.lock("digits search-3", wait=True):
            successor.write("epochs.jsonl", b"successor")
            with pytest.raises(Superseded):
                cut_off.write("epochs.jsonl", b"first again")
            with pytest.raises(Superseded):
                cut_off.remove("epochs.jsonl")
            study.revoke_lease()
            with pytest.raises(Superseded):
                successor.append("epochs.jsonl", {"epoch": 1})
    assert study.read("epochs.jsonl") == b"successor"
    assert study.names("*") == ["epochs.jsonl"]


def test_a_lease_is_waited_for_while_its_holder_renews_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "HEARTBEAT_S", 0.1)
    monkeypatch.setattr(lease_module, "EXPIRY_S", 0.5)
    one, other = seen_from("a", tmp_path), seen_from("b", tmp_path)
    order = []

    def lock_other() -> None:
        with other.lock("sweep two", wait=True):
            order.append("two begins")

    with one.lock("sweep one", wait=True):
        with pytest.raises(BlockingIOError, match="sweep one"), other.lock("sweep two", wait=False):
            pass
        waiting = threading.Thread(target=lock_other)
        waiting.start()
        time.sleep(1.0)
        order.append("one ends")
    waiting.join()
    assert order == ["one ends", "two begins"]


@pytest.mark.parametrize(("here", "waits"), [(False, True), (True, False)])
def test_a_lease_without_heartbeat_is_taken_over_and_at_once_if_its_process_has_died_here(
    here: bool, waits: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_module, "EXPIRY_S", 0.5)
    folder = seen_from("a", tmp_path)
    with folder.lock("us", wait=True):
        lease = json.loads(folder.read(LEASE_FILE) or b"")
    assert lease.keys() == {"id", "by", "host", "pid", "beat"}
    host = lease["host"] if here else "a node that is gone"
    folder.write(LEASE_FILE, json.dumps(lease | {"pid": 2**22 + 1, "by": "another", "host": host}).encode())
    started = time.monotonic()
    with folder.lock("us", wait=False):
        assert (time.monotonic() - started > 0.5) == waits
        folder.write("x", b"")


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ("s3://key:secret@bucket/results", "secret"),
        ("nonsense://bucket/results", "nonsense://bucket/results"),
        ("file://relative", "file://relative"),
    ],
)
def test_a_url_that_cannot_be_used_is_a_user_error(written: str, reason: str) -> None:
    with pytest.raises(UserError, match=f"--results: .*{reason}") as caught:
        results_folder(written)
    assert "secret@" not in str(caught.value)


@pytest.mark.parametrize("query", ["", "?region=x"])
def test_a_url_has_its_copies_in_the_users_cache_and_keeps_its_query(
    query: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = results_folder(f"file://{tmp_path}/there")
    assert folder.path.parent == tmp_path / "cache" / "kdtrain" / "results"
    assert isinstance(folder, MirrorFolder)
    folder._remote.url += query
    assert folder.url == f"file://{tmp_path}/there{query}"
    assert str(folder.folder("digits_kd")) == f"file://{tmp_path}/there/digits_kd{query}"
    assert results_folder(str(tmp_path)).url is None
