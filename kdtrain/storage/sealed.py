"""Stored JSON with digests: the one place that seals objects and journals, and that tells damaged ones from whole ones.

An object carries the digest of its other keys under "digest". Each line of a journal (.jsonl) carries a digest that is
chained with that of the line before, so that a changed, removed, doubled or moved line is noticed. Content of earlier
versions has no digest; the first sealed line of a journal is chained with the bytes of all lines before it. The digest
is of the values, not of the bytes: it stays the same if a file is only indented in another way. Standard library only.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

DIGEST = "digest"
"""The key of the digest in an object and in a row."""


class Journal(NamedTuple):
    """The content of a journal.

    Attributes:
        rows: The rows before the first damaged line, without their digests.
        damage: What is wrong with that line, or None.
        is_sealed: True if every row has a digest.
    """

    rows: list[dict[str, Any]]
    damage: str | None
    is_sealed: bool


def sealed_object(value: Mapping[str, Any]) -> bytes:
    """Return an object with its digest as the content of a JSON file; ValueError if a number is not finite."""
    read_back = json.loads(json.dumps(value, allow_nan=False))
    return (json.dumps({**value, DIGEST: _chained("", read_back)}, indent=1) + "\n").encode()


def open_object(data: bytes, newest: int) -> dict[str, Any]:
    """Return the object of a JSON file without its digest. One of a newer schema is returned unverified.

    Args:
        data: The file's content.
        newest: The newest known schema, in which every object has a digest. In older ones it may be absent.

    Raises:
        ValueError: It is no object with a schema number, or its digest is absent or differs; the text says which.
    """
    value = _object(data)
    if value is None or type(value.get("schema")) is not int:
        raise ValueError("must be a JSON object with a schema number")
    if value["schema"] > newest:
        return value
    given = value.pop(DIGEST, None)
    if given is None and value["schema"] == newest:
        raise ValueError("has lost its digest, so it has changed since it was written")
    if given is not None and not _fits(given, "", value):
        raise ValueError("has changed since it was written: its digest differs")
    return value


def sealed_row(row: Mapping[str, Any], journal: bytes) -> bytes:
    """Return the line that continues a journal; ValueError if a number is not finite.

    Args:
        row: The row.
        journal: The end of the journal's whole lines (see `whole_lines`): at least the last line, or all of it if that
            line has no digest.
    """
    last = _object(journal[journal.rfind(b"\n", 0, -1) + 1 :])
    before = str(last[DIGEST]) if last and DIGEST in last else _digest(journal) if journal else ""
    read_back = json.loads(json.dumps(row, allow_nan=False))
    return (json.dumps({**row, DIGEST: _chained(before, read_back)}) + "\n").encode()


def whole_lines(journal: bytes) -> bytes:
    """Return a journal without a last line that was cut off; a whole line that only lacks its end gets it."""
    rest = journal[journal.rfind(b"\n") + 1 :]
    if not rest:
        return journal
    return journal + b"\n" if _object(rest) is not None else journal[: -len(rest)]


def open_journal(data: bytes) -> Journal:
    """Return the rows of a journal. A torn last line is a write that was cut off: it is left out, and is no damage."""
    rows: list[dict[str, Any]] = []
    is_sealed = True
    before: str | None = None  # the digest of the last sealed line
    at = 0
    whole = whole_lines(data)
    for number, line in enumerate((line + b"\n" for line in whole.split(b"\n")[:-1]), 1):
        row = _object(line)
        if row is not None and DIGEST in row:
            given = row.pop(DIGEST)
            if before is None:
                before = _digest(whole[:at]) if at else ""
            if not _fits(given, before, row):
                return Journal(rows, f"line {number} or one before it has changed, is lost or was moved", is_sealed)
            before = given
            rows.append(row)
        elif before is not None or (row is None and DIGEST.encode() in line):
            return Journal(rows, f"line {number} cannot be read", is_sealed)
        else:  # of an earlier version, which let torn lines stand
            is_sealed = False
            rows += [] if row is None else [row]
        at += len(line)
    damage = "the last line has changed" if _ends_in_more_than_a_row(data[len(whole) :]) else None
    return Journal(rows, damage, is_sealed)


def _ends_in_more_than_a_row(rest: bytes) -> bool:
    """Return True if a row stands in a last line and something behind it: no write that was cut off looks like that."""
    try:
        value, _ = json.JSONDecoder().raw_decode(rest.decode(errors="replace"))
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict)


def _object(data: bytes) -> dict[str, Any] | None:
    """Return the object that some bytes are, or None."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _fits(given: Any, before: str, value: Mapping[str, Any]) -> bool:
    try:
        return bool(given == _chained(before, value))
    except ValueError:  # an infinite number, which is never written
        return False


def _chained(before: str, value: Mapping[str, Any]) -> str:
    """Return 16 hexadecimal digits that identify an object as it is read back, and what is `before` it."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return _digest(f"{before}{text}".encode())


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=8).hexdigest()
