"""Files of results by name: the common interface `Folder`, and the folder of this machine. No other package is needed.

Every write is atomic: a file is written under a temporary name and then renamed, so a reader sees all of it or none.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
import socket
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from kdtrain.errors import DamagedFile, UserError
from kdtrain.storage.sealed import DIGEST, open_journal, sealed_row, whole_lines

Row = dict[str, Any]
LOCK = ".lock"
TRANSFERS = 8
"""Files that are transferred at the same time."""
SETTLED_S = 1.0
"""A file that changed less than this ago may change again within one tick of the file system's clock."""
TAIL_BYTES = 1 << 16
"""The end of a journal in which its last line is looked for first."""


def write_bytes(path: Path, data: bytes, *, durable: bool = False) -> None:
    """Write a file atomically: a reader sees the old file or the whole new one, even after a kill.

    If `durable`, it survives a power cut too, which costs some milliseconds. A checkpoint does not need that: a damaged
    one is recognised by its digest.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.{_writer()}.", dir=path.parent)
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
    """Return 16 hexadecimal digits that identify the content."""
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def user_path(written: str | Path, name: str) -> Path:
    """Return a path that a user has written, with `~` as the home folder; UserError begins with `name`."""
    if not isinstance(written, str | Path):
        raise UserError(f"{name}: must be a path, got {written!r:.80}")
    if "\0" in str(written):
        raise UserError(f"{name}: a path cannot contain a NUL character, got {str(written)!r:.80}")
    try:
        return Path(written).expanduser()
    except RuntimeError as error:  # ~name of an unknown user
        raise UserError(f"{name}: {written} is no path ({str(error).rstrip('.')})") from None


def user_cache() -> Path:
    """Return this user's cache folder on this machine: $XDG_CACHE_HOME/kdtrain or ~/.cache/kdtrain."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kdtrain"


def remove_temporary(folder: Path) -> None:
    """Remove what processes of this machine have left in a folder when they were killed while they wrote a file.

    The files of processes that live, and of other machines or containers, are left alone.
    """
    host = _host()
    for path in folder.glob(".*"):
        writer = re.search(r"\.([0-9a-f]{8})-(\d+)\.\w+$", path.name)
        if writer is not None and writer[1] == host and not _lives(int(writer[2])):
            with suppress(OSError):  # a folder of another user stays as it is
                path.unlink()


def _writer() -> str:
    """Return what names this process in the names of its temporary files."""
    return f"{_host()}-{os.getpid()}"


def _host() -> str:
    """Return what tells this machine or container from others: its name and its namespace of process ids."""
    try:
        namespace = os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        namespace = 0
    return digest(f"{socket.gethostname()} {namespace}".encode())[:8]


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):  # of another user; no process id
        return True
    return True


def sync(path: Path) -> None:
    """Let a file's content survive a power cut; do nothing without a file."""
    with suppress(FileNotFoundError), open(path, "rb") as file:
        os.fsync(file.fileno())


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits. A process reads an unchanged file once."""
    stat = path.stat()
    stamp = stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns
    return _sha256_once(path, stamp) if time.time() > stat.st_ctime + SETTLED_S else _sha256(path)


@lru_cache(maxsize=64)
def _sha256_once(path: Path, stamp: tuple[int, ...]) -> str:
    return _sha256(path)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Append one line with its digest to a journal, in place of a last line that a kill cut off.

    Raises:
        ValueError: A number is not finite.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab+") as file:
        size = file.seek(0, os.SEEK_END)
        tail = _tail(file, size)
        whole = whole_lines(tail)
        line = sealed_row(row, whole)
        if not tail.startswith(whole):  # only the end of the last line was missing
            line = b"\n" + line
        elif whole != tail:
            file.truncate(size - len(tail) + len(whole))
        file.write(line)


def _tail(file: BinaryIO, size: int) -> bytes:
    """Return the end of a journal that has its last whole line, or all of it if that line has no digest."""
    length = TAIL_BYTES
    while length < size:
        file.seek(size - length)
        tail = whole_lines(file.read())
        last = tail[tail.rfind(b"\n", 0, -1) + 1 :]
        if tail.count(b"\n") > 1 and f'"{DIGEST}": "'.encode() in last:
            break
        length *= 16
    file.seek(max(size - length, 0))
    return file.read()


def parse_rows(data: bytes) -> list[Row]:
    """Return the JSON objects among the lines of a file that has no digests."""
    rows = []
    for line in data.splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def journal_rows(data: bytes, place: object) -> list[Row]:
    """Return the rows of a journal's content, without a last line that was cut off; DamagedFile names the `place`."""
    journal = open_journal(data)
    if journal.damage is not None:
        raise DamagedFile.at(place, journal.damage)
    return journal.rows


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a journal, or an empty list if there is no file; DamagedFile as `journal_rows`."""
    return journal_rows(path.read_bytes(), path) if path.exists() else []


@contextmanager
def locked(folder: Path, *, wait: bool) -> Iterator[None]:
    """Lock a folder for this process; the operating system unlocks it when the process ends in any way.

    Raises:
        BlockingIOError: Another process has locked it, and `wait` is False.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / LOCK, "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield


def remove_if_empty(folder: Path) -> None:
    """Remove a folder of this machine if nothing but its lock is in it."""
    if {path.name for path in folder.iterdir()} <= {LOCK}:
        (folder / LOCK).unlink(missing_ok=True)
        folder.rmdir()


class Folder(ABC):
    """Files by name, on this machine (`LocalFolder`) or at a URL (`storage.mirror.MirrorFolder`).

    Attributes:
        path: The folder of this machine that holds the files, or copies of those that this process has used.
        url: The URL that the files belong to; None if they belong to this machine.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def url(self) -> str | None:
        return None

    def __str__(self) -> str:
        return self.url or str(self.path)

    @abstractmethod
    def folder(self, name: str) -> "Folder":
        """Return the folder of this name in it."""

    @abstractmethod
    def has(self, name: str) -> bool:
        """Return True if there is a file of this name."""

    @abstractmethod
    def read(self, name: str) -> bytes | None:
        """Return a small file's present content, or None if there is no such file."""

    @abstractmethod
    def file(self, name: str) -> Path:
        """Return a file's path on this machine, updated from the URL; there may be no file."""

    @abstractmethod
    def write(self, name: str, data: bytes, *, durable: bool = False) -> None:
        """Write a file atomically; `durable` as in `write_bytes`."""

    @abstractmethod
    def append(self, name: str, row: Mapping[str, Any]) -> None:
        """Append a row to a journal. At a URL the copy is continued: read a file that others have begun first."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a file, if there is one."""

    @abstractmethod
    def names(self, pattern: str) -> list[str]:
        """Return the sorted names of the files directly in it that match a pattern."""

    @abstractmethod
    def clear(self) -> None:
        """Remove the folder with all that is in it: for a folder that only kdtrain writes into."""

    @abstractmethod
    def remove_if_empty(self) -> None:
        """Remove the folder if no file but its lock is in it."""

    @abstractmethod
    def lock(self, owner: str, *, wait: bool) -> AbstractContextManager[None]:
        """Reserve the folder for this process; at a URL with a lease (`storage.lease.Lease`).

        A lease of the same `owner` is taken over at once: the earlier process was considered dead when this one was
        started.

        Raises:
            BlockingIOError: Another process holds it, and `wait` is False.
        """

    @abstractmethod
    def fetch_all(self, *patterns: str) -> None:
        """Update the copies of all files, in it and below it, whose names match a pattern; do nothing without a URL."""

    @abstractmethod
    def publish(self) -> None:
        """Upload every file directly in `path` except hidden ones; do nothing without a URL."""

    @abstractmethod
    def revoke_lease(self) -> None:
        """End another process's lease, so that its writes raise Superseded; do nothing without a URL."""

    def rows(self, name: str) -> list[Row]:
        """Return the rows of a journal, or an empty list if there is no file; DamagedFile as `journal_rows`."""
        return journal_rows(self.read(name) or b"", f"{self}/{name}")


class LocalFolder(Folder):
    """A folder of this machine, or of a file system that is mounted on it."""

    def folder(self, name: str) -> "LocalFolder":
        return LocalFolder(self.path / name)

    def has(self, name: str) -> bool:
        return self.file(name).exists()

    def read(self, name: str) -> bytes | None:
        path = self.file(name)
        return path.read_bytes() if path.exists() else None

    def file(self, name: str) -> Path:
        return self.path / name

    def write(self, name: str, data: bytes, *, durable: bool = False) -> None:
        write_bytes(self.file(name), data, durable=durable)

    def append(self, name: str, row: Mapping[str, Any]) -> None:
        append_row(self.file(name), row)

    def remove(self, name: str) -> None:
        self.file(name).unlink(missing_ok=True)

    def names(self, pattern: str) -> list[str]:
        return sorted(path.name for path in self.path.glob(pattern))

    def clear(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)

    def remove_if_empty(self) -> None:
        remove_if_empty(self.path)

    def lock(self, owner: str, *, wait: bool) -> AbstractContextManager[None]:
        return locked(self.path, wait=wait)

    def fetch_all(self, *patterns: str) -> None:
        pass

    def publish(self) -> None:
        pass

    def revoke_lease(self) -> None:
        pass
