"""Sealed objects and journals: a changed value, key or line is noticed, and a torn last line is no damage."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kdtrain.errors import DamagedFile
from kdtrain.storage import folder as storage_folder
from kdtrain.storage.folder import append_row, read_rows, remove_temporary, write_bytes
from kdtrain.storage.sealed import DIGEST, open_journal, open_object, sealed_object

VALUE: dict[str, Any] = {
    "schema": 2,
    "state": "complete",
    "best": {"epoch": 3, "val/nll": 1 / 3},
    4: (1, 2.5),
    "no": None,
}
ROWS = [{"epoch": epoch, "val/accuracy": epoch / 7} for epoch in range(1, 5)]


def journal(path: Path, rows: list[dict[str, Any]] = ROWS) -> list[bytes]:
    for row in rows:
        append_row(path, row)
    return path.read_bytes().splitlines(keepends=True)


def test_an_object_is_read_as_it_was_written_in_whatever_layout() -> None:
    data = sealed_object(VALUE)
    assert open_object(data, 2) == json.loads(json.dumps(VALUE))
    assert open_object(json.dumps(json.loads(data), sort_keys=True).encode(), 2) == json.loads(json.dumps(VALUE))


def test_every_flipped_bit_of_an_object_is_noticed_or_changes_nothing() -> None:
    data, value, refused = sealed_object(VALUE), json.loads(json.dumps(VALUE)), 0
    for at in range(len(data)):
        for bit in range(8):
            flipped = data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]
            try:
                assert open_object(flipped, 2) == value or json.loads(flipped)["schema"] > 2
            except ValueError:
                refused += 1
    assert refused > 4 * len(data)


def test_an_object_of_an_older_schema_may_lack_its_digest_and_one_of_the_newest_may_not() -> None:
    assert open_object(b'{"schema": 1, "a": 1}', 2) == {"schema": 1, "a": 1}
    with pytest.raises(ValueError, match="digest"):
        open_object(b'{"schema": 2, "a": 1}', 2)


@pytest.mark.parametrize(
    ("order", "line"),
    [([0, 1, 3], 3), ([1, 2, 3], 1), ([0, 1, 1, 2, 3], 3), ([0, 2, 1, 3], 2), ([0, 1, 2, 3, 3], 5), ([2], 1)],
)
def test_a_removed_a_doubled_and_a_moved_line_are_noticed(order: list[int], line: int, tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    lines = journal(path)
    path.write_bytes(b"".join(lines[i] for i in order))
    with pytest.raises(DamagedFile, match=rf"^{path}: line {line} "):
        read_rows(path)
    assert open_journal(path.read_bytes()).rows == [ROWS[i] for i in order[: line - 1]]


def test_every_flipped_bit_of_a_journal_is_noticed_or_changes_nothing(tmp_path: Path) -> None:
    journal(path := tmp_path / "record.jsonl", ROWS[:3])
    data = path.read_bytes()
    for at in range(len(data)):
        for bit in range(8):
            found = open_journal(data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :])
            assert found.damage or found.rows == ROWS[:3], (at, bit)


def test_a_torn_last_line_is_left_out_and_is_cut_off_before_the_next_one(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    whole = b"".join(journal(path))
    last = whole.splitlines(keepends=True)[-1]
    for cut in range(1, len(last) + 1):
        path.write_bytes(whole[:-cut])
        known = ROWS if cut == 1 else ROWS[:-1]
        assert read_rows(path) == known
        append_row(path, {"epoch": 9})
        assert read_rows(path) == [*known, {"epoch": 9}]
    path.write_bytes(whole + bytes(40))  # what a power cut may leave of a line
    assert read_rows(path) == ROWS


def test_a_journal_that_an_earlier_version_began_is_continued_and_protected_from_then_on(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    path.write_bytes(b'{"epoch": 1}\n{"epo\n{"epoch": 2}\n{"ep')
    assert read_rows(path) == [{"epoch": 1}, {"epoch": 2}]
    append_row(path, {"epoch": 3})
    append_row(path, {"epoch": 4})
    data = path.read_bytes()
    found = open_journal(data)
    assert ([row["epoch"] for row in found.rows], found.damage, found.is_sealed) == ([1, 2, 3, 4], None, False)
    assert open_journal(data.replace(b'"epoch": 1', b'"epoch": 7')).damage


def test_lines_longer_than_what_is_read_first_are_chained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_folder, "TAIL_BYTES", 64)
    rows = [{"text": "x" * size} for size in (3, 2000, 10, 500, 0)]
    journal(tmp_path / "record.jsonl", rows)
    assert read_rows(tmp_path / "record.jsonl") == rows


def test_a_row_may_not_have_a_digest_of_its_own_but_values_of_any_kind(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"a": [1, {"b": None}], "ü": "\ud800", "n": 2**70, "f": 1e-300}, {}]
    journal(tmp_path / "record.jsonl", rows)
    assert read_rows(tmp_path / "record.jsonl") == rows
    assert all(DIGEST in json.loads(line) for line in (tmp_path / "record.jsonl").read_bytes().splitlines())


def test_temporary_files_of_killed_processes_of_this_machine_are_removed_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = "import os, sys, pathlib; from kdtrain.storage import folder\n"
    killed += "folder.os.replace = lambda *names: os._exit(9)\n"
    killed += "folder.write_bytes(pathlib.Path(sys.argv[1]), b'torn')\n"
    assert subprocess.run([sys.executable, "-c", killed, str(tmp_path / "outcome.json")]).returncode == 9
    (torn,) = tmp_path.iterdir()
    writer = torn.name.split(".")[3]
    others = [
        torn.with_name(f".outcome.json.{writer.split('-')[0]}-{os.getpid()}.abc"),  # of a process that lives
        torn.with_name(f".outcome.json.01234567-{writer.split('-')[1]}.abc"),  # of another machine
        torn.with_name(".lock"),
    ]
    for other in others:
        other.write_bytes(b"")
    write_bytes(tmp_path / "outcome.json", b"whole")
    before = socket.gethostname
    monkeypatch.setattr(socket, "gethostname", lambda: "another")
    remove_temporary(tmp_path)
    assert torn.exists()
    monkeypatch.setattr(socket, "gethostname", before)
    remove_temporary(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"outcome.json", *(other.name for other in others)}
