"""The lease of a folder at a URL: at most one process writes there, although object stores have no locks."""

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypedDict, cast

from kdtrain.errors import UserError
from kdtrain.storage.folder import parse_rows
from kdtrain.storage.remote import RemoteFiles

LEASE_FILE = "claim.json"
HEARTBEAT_S = 5.0
"""The interval at which a holder renews its lease."""
EXPIRY_S = 30.0
"""The time without a heartbeat after which others take a lease over."""
POLL_S = 0.2


class LeaseRecord(TypedDict):
    """The content of claim.json."""

    id: str
    by: str
    host: str
    pid: int
    beat: int


class Superseded(UserError):
    """This process writes to a folder whose lease another process has taken over or revoked."""


class Lease:
    """The right of one process to write to a folder at a URL, as a file there that the holder renews.

    It protects from a process that was considered dead and still runs, since that one checks its lease before every
    write. If two processes acquire it at the same instant, the last one to write the file holds it.
    """

    def __init__(self, remote: RemoteFiles, below: str, owner: str, place: str) -> None:
        """Prepare a lease of the folder `below`; `hold` acquires it. `place` is its URL, for error messages."""
        self._remote, self._file, self._owner, self._place = remote, f"{below}{LEASE_FILE}", owner, place
        self._id = uuid.uuid4().hex

    @contextmanager
    def hold(self, *, wait: bool) -> Iterator[None]:
        """Acquire the lease, renew it in a thread, and give it back at the end; see `Folder.lock`."""
        self._wait_until_free(wait)
        self._renew(0)
        ended = threading.Event()
        thread = threading.Thread(target=self._send_heartbeats, args=(ended,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            if self._is_held():
                self._remote.remove(self._file)

    def require(self) -> None:
        """Raise Superseded if this process no longer holds the lease."""
        if not self._is_held():
            raise Superseded(f"{self._place}: this process lost its lease: another one has taken it over or revoked it")

    def _wait_until_free(self, wait: bool) -> None:
        """Return when there is no lease, or one that may be taken over."""
        seen, since = self._current(), time.monotonic()
        while seen is not None and seen["by"] != self._owner and not _is_dead_here(seen):
            time.sleep(POLL_S)
            now = self._current()
            if now == seen and time.monotonic() - since > EXPIRY_S:
                return
            if now is not None and now != seen:
                if not wait:
                    raise BlockingIOError(f"{self._place}: is held by {now['by']} on {now['host']}")
                since = time.monotonic()
            seen = now

    def _send_heartbeats(self, ended: threading.Event) -> None:
        beat = 0
        while not ended.wait(HEARTBEAT_S):
            beat += 1
            try:
                if not self._is_held():
                    return  # the next write raises Superseded
                self._renew(beat)
            except OSError:  # the network is away for a while; if the lease expires, the next write raises Superseded
                continue

    def _renew(self, beat: int) -> None:
        record: LeaseRecord = {
            "id": self._id, "by": self._owner, "host": socket.gethostname(), "pid": os.getpid(), "beat": beat,
        }  # fmt: skip
        self._remote.write(self._file, json.dumps(record).encode())

    def _current(self) -> LeaseRecord | None:
        rows = parse_rows(self._remote.read(self._file) or b"")
        return cast(LeaseRecord, rows[0]) if rows else None

    def _is_held(self) -> bool:
        current = self._current()
        return current is not None and current["id"] == self._id


def _is_dead_here(lease: LeaseRecord) -> bool:
    """Return True if the holder was a process of this machine that has ended."""
    return lease["host"] == socket.gethostname() and not Path(f"/proc/{lease['pid']}").exists()
