"""Folders of results: on this machine, or at a URL with a copy here of what is in use. Standard library only.

What stands under its name is whole: written beside it, then renamed; at a URL uploaded in one piece. Whoever reads from
a URL asks there each time, so that what another node has written is seen at once.
"""

import fcntl
import fnmatch
import hashlib
import json
import os
import shutil
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from kdtrain.errors import UserError

Row = dict[str, Any]
CLAIM = "claim.json"
BEAT_S = 5.0
"""How often whoever holds a folder at a URL says that it still does."""
SILENCE_S = 30.0
"""A holder that says nothing for so long is taken for dead."""
TRANSFERS = 8
"""Files on their way at once."""


def write_bytes(path: Path, data: bytes, *, durable: bool = False) -> None:
    """Atomic: a reader sees the old file or the whole new one, and so does whoever comes after a kill.

    durable: after a power cut too, which costs some milliseconds; a checkpoint does without, its digest tells.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp's 0600 would lock colleagues out of a shared results folder
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def digest(data: bytes) -> str:
    """16 hexadecimal digits."""
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def user_cache() -> Path:
    """XDG_CACHE_HOME/kdtrain or ~/.cache/kdtrain: of this machine."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "kdtrain"


def append_row(path: Path, row: Row) -> None:
    """One line of JSON, flushed; a torn last line (of a kill) is ended first, so that it spoils nothing else."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab+") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write((json.dumps(row, allow_nan=False) + "\n").encode())


def rows_of(data: bytes) -> list[Row]:
    """The whole rows of a .jsonl file's content, torn lines left out."""
    rows = []
    for line in data.splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def read_rows(path: Path) -> list[Row]:
    """The whole rows of a .jsonl file, torn lines left out; none if there is no file."""
    return rows_of(path.read_bytes()) if path.exists() else []


@contextmanager
def locked(folder: Path, *, wait: bool) -> Iterator[None]:
    """Holds a folder for this process alone; the lock goes with the process, however it ends.

    A folder that another process holds is waited for, or refused with a BlockingIOError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield


class Distant(Protocol):
    """A folder at a URL. Names are relative, with slashes. Raises OSError where it cannot be reached."""

    url: str

    def read(self, name: str) -> bytes | None:
        """The whole file; None where there is none."""
        ...

    def write(self, name: str, data: bytes) -> None:
        """Readers see the old file or the whole new one."""
        ...

    def remove(self, name: str) -> None:
        """Nothing where there is none."""
        ...

    def clear(self, folder: str) -> None:
        """Removes a folder with all that is in it."""
        ...

    def stamps(self, folder: str = "") -> dict[str, tuple[int, int]]:
        """{name: (bytes, time of writing in ns)} of all files in and below a folder; {} where there is none."""
        ...


class Superseded(UserError):
    """Another process has taken over what this one still writes to: it was given up for dead."""


class Folder:
    """Files by name. `path` is where they lie here: all of them, or copies of those that were read or written here."""

    def __init__(self, path: Path, distant: Distant | None = None, below: str = "") -> None:
        """distant: where the files truly are; below: this folder's name there, with a slash at its end."""
        self.path, self.distant, self._below = path, distant, below
        self._claim: str | None = None

    def __str__(self) -> str:
        if self.distant is None:
            return str(self.path)
        url, mark, query = self.distant.url.partition("?")
        return f"{url}/{self._below}".rstrip("/") + mark + query

    def folder(self, name: str) -> "Folder":
        return Folder(self.path / name, self.distant, f"{self._below}{name}/")

    def has(self, name: str) -> bool:
        if self.distant is None:
            return (self.path / name).exists()
        return f"{self._below}{name}" in self.distant.stamps(f"{self._below}{name}")

    def read(self, name: str) -> bytes | None:
        """A small file's content as it is now; None where there is none."""
        path = self.path / name
        if self.distant is None:
            return path.read_bytes() if path.exists() else None
        data = self.distant.read(f"{self._below}{name}")
        if data is None:
            path.unlink(missing_ok=True)
        else:
            write_bytes(path, data)
        return data

    def rows(self, name: str) -> list[Row]:
        """Of a .jsonl file, torn lines left out; none if there is no file."""
        return rows_of(self.read(name) or b"")

    def file(self, name: str) -> Path:
        """Where a file lies here, fetched if it is newer at the URL; it may be absent."""
        if self.distant is not None:
            self.fetch(name, self.distant.stamps(f"{self._below}{name}").get(f"{self._below}{name}"))
        return self.path / name

    def write(self, name: str, data: bytes, *, durable: bool = False) -> None:
        write_bytes(self.path / name, data, durable=durable)
        self._upload(name, data)

    def append(self, name: str, row: Row) -> None:
        """To what lies here: whoever continues a file has read it before."""
        append_row(self.path / name, row)
        if self.distant is not None:
            self._upload(name, (self.path / name).read_bytes())

    def remove(self, name: str) -> None:
        (self.path / name).unlink(missing_ok=True)
        if self.distant is not None:
            self._require_claim()
            self.distant.remove(f"{self._below}{name}")

    def names(self, pattern: str) -> list[str]:
        """Of the files directly in it, in order."""
        if self.distant is None:
            return sorted(path.name for path in self.path.glob(pattern))
        found = (name.removeprefix(self._below) for name in self.distant.stamps(self._below))
        return sorted(name for name in found if "/" not in name and fnmatch.fnmatch(name, pattern))

    def fetch_all(self, *patterns: str) -> None:
        """Makes what lies here, in it and below, what lies at the URL, for files whose own names match one of them."""
        if self.distant is None:
            return
        there = {name.removeprefix(self._below): stamp for name, stamp in self.distant.stamps(self._below).items()}
        matched = {name for name in there for pattern in patterns if fnmatch.fnmatch(Path(name).name, pattern)}
        wanted = {name: stamp for name, stamp in there.items() if name in matched}
        with ThreadPoolExecutor(TRANSFERS) as pool:
            list(pool.map(self.fetch, wanted.keys(), wanted.values()))

    def clear(self) -> None:
        """Removes all of it, here and there."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self.distant is not None:
            self.distant.clear(self._below)

    def publish(self) -> None:
        """Uploads every file that lies directly in it here, hidden ones left out."""
        if self.distant is not None:
            for path in sorted(path for path in self.path.iterdir() if path.is_file() and path.name[0] != "."):
                self._upload(path.name, path.read_bytes())

    def fetch(self, name: str, stamp: tuple[int, int] | None) -> None:
        """Fetches a file unless what lies here is of that stamp; removes it here where it is gone there."""
        assert self.distant is not None
        path = self.path / name
        if stamp is None:
            path.unlink(missing_ok=True)
            return
        if path.exists() and (path.stat().st_size, path.stat().st_mtime_ns) == stamp:
            return
        data = self.distant.read(f"{self._below}{name}")
        if data is not None:
            write_bytes(path, data)
            os.utime(path, ns=(stamp[1], stamp[1]))

    @contextmanager
    def held(self, by: str, *, wait: bool) -> Iterator[None]:
        """For this process alone, as `locked`; at a URL by a claim there, for whoever calls itself `by`.

        A claim of the same name is taken over at once: who comes again was given up for dead. Another's is waited for,
        or refused with a BlockingIOError; where its holder says nothing for `SILENCE_S` it is taken over as well. From
        then on the holder's own writing raises Superseded.
        """
        with locked(self.path, wait=wait):
            if self.distant is None:
                yield
                return
            self._await_claim(by, wait)
            self._claim = uuid.uuid4().hex
            ended = threading.Event()
            self._beat(by, 0)
            thread = threading.Thread(target=self._keep_claim, args=(by, ended), daemon=True)
            thread.start()
            try:
                yield
            finally:
                ended.set()
                thread.join()
                if self._claim_there().get("id") == self._claim:
                    self.distant.remove(f"{self._below}{CLAIM}")
                self._claim = None

    def release(self) -> None:
        """Ends whoever holds it at a URL: what it writes from now on raises Superseded."""
        if self.distant is not None:
            self.distant.remove(f"{self._below}{CLAIM}")

    def _await_claim(self, by: str, wait: bool) -> None:
        seen, since = self._claim_there(), time.monotonic()
        while seen and seen["by"] != by and not _is_dead_here(seen):
            time.sleep(0.2)
            now = self._claim_there()
            if now == seen and time.monotonic() - since > SILENCE_S:
                return
            if now and now != seen:
                if not wait:
                    raise BlockingIOError(f"{self}: is held by {now['by']} on {now['host']}")
                since = time.monotonic()
            seen = now

    def _keep_claim(self, by: str, ended: threading.Event) -> None:
        beat = 0
        while not ended.wait(BEAT_S):
            beat += 1
            try:
                if self._claim_there().get("id") != self._claim:
                    return  # taken over: the next writing says so
                self._beat(by, beat)
            except OSError:  # the network is away for a while: others may take over, and the next writing says so
                continue

    def _beat(self, by: str, beat: int) -> None:
        assert self.distant is not None
        claim = {"id": self._claim, "by": by, "host": socket.gethostname(), "pid": os.getpid(), "beat": beat}
        self.distant.write(f"{self._below}{CLAIM}", json.dumps(claim).encode())

    def _claim_there(self) -> Row:
        assert self.distant is not None
        rows = rows_of(self.distant.read(f"{self._below}{CLAIM}") or b"")
        return rows[0] if rows else {}

    def _require_claim(self) -> None:
        if self._claim is not None and self._claim_there().get("id") != self._claim:
            raise Superseded(f"{self}: another process has taken it over, which took this one for dead")

    def _upload(self, name: str, data: bytes) -> None:
        if self.distant is not None:
            self._require_claim()
            self.distant.write(f"{self._below}{name}", data)


def _is_dead_here(claim: Row) -> bool:
    """Whether the holder was a process of this machine that is gone."""
    return claim["host"] == socket.gethostname() and not Path(f"/proc/{claim['pid']}").exists()
