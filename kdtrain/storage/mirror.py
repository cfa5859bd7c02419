"""Folders at a URL, with copies on this machine, and `results_folder`, which chooses the kind of a folder."""

import fnmatch
import os
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kdtrain.errors import UserError
from kdtrain.storage.folder import (
    TRANSFERS,
    Folder,
    LocalFolder,
    append_row,
    digest,
    locked,
    remove_if_empty,
    user_cache,
    user_path,
    write_bytes,
)
from kdtrain.storage.lease import LEASE_FILE, Lease
from kdtrain.storage.remote import RemoteFiles, Stamp, require_url


def results_folder(place: str) -> Folder:
    """Return the folder of results at a path, or at a URL, whose copies are in the user's cache folder.

    Raises:
        UserError: The place is empty, or the URL cannot be reached or contains a password.
    """
    if not place:
        raise UserError("--results: must name a folder or a URL, got nothing")
    if "://" not in place:
        return LocalFolder(user_path(place, "--results"))
    require_url(place, "--results")
    return MirrorFolder(user_cache() / "results" / digest(place.encode()), RemoteFiles(place, "--results"))


class MirrorFolder(Folder):
    """A folder at a URL. Every write is uploaded, and every read checks the URL, so that all nodes see the same files.

    While this process holds the folder's lease (`lock`), every write first checks that it has not been taken over.
    """

    def __init__(self, path: Path, remote: RemoteFiles, below: str = "") -> None:
        """Open the folder `below` (empty, or with a slash at its end) of the URL, with `path` for copies."""
        super().__init__(path)
        self._remote, self._below = remote, below
        self._lease: Lease | None = None

    @property
    def url(self) -> str:
        if not self._below:
            return self._remote.url  # as written: its digest names the copies of all processes of this machine
        base, mark, query = self._remote.url.partition("?")
        return f"{base}/{self._below}".rstrip("/") + mark + query

    def folder(self, name: str) -> "MirrorFolder":
        return MirrorFolder(self.path / name, self._remote, f"{self._below}{name}/")

    def has(self, name: str) -> bool:
        return self._stamp(name) is not None

    def read(self, name: str) -> bytes | None:
        data = self._remote.read(f"{self._below}{name}")
        if data is None:
            (self.path / name).unlink(missing_ok=True)
        else:
            write_bytes(self.path / name, data)
        return data

    def file(self, name: str) -> Path:
        self._fetch(name, self._stamp(name))
        return self.path / name

    def write(self, name: str, data: bytes, *, durable: bool = False) -> None:
        write_bytes(self.path / name, data, durable=durable)
        self._upload(name, data)

    def append(self, name: str, row: Mapping[str, Any]) -> None:
        append_row(self.path / name, row)
        self._upload(name, (self.path / name).read_bytes())

    def remove(self, name: str) -> None:
        (self.path / name).unlink(missing_ok=True)
        self._require_lease()
        self._remote.remove(f"{self._below}{name}")

    def names(self, pattern: str) -> list[str]:
        return sorted(name for name in self._stamps() if "/" not in name and fnmatch.fnmatch(name, pattern))

    def fetch_all(self, *patterns: str) -> None:
        wanted = {
            name: stamp
            for name, stamp in self._stamps().items()
            if any(fnmatch.fnmatch(Path(name).name, pattern) for pattern in patterns)
        }
        with ThreadPoolExecutor(TRANSFERS) as pool:
            list(pool.map(self._fetch, wanted.keys(), wanted.values()))

    def clear(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        self._remote.clear(self._below)

    def remove_if_empty(self) -> None:
        remove_if_empty(self.path)
        if set(self._stamps()) <= {LEASE_FILE}:
            self._remote.clear(self._below)

    def publish(self) -> None:
        for path in sorted(path for path in self.path.iterdir() if path.is_file() and path.name[0] != "."):
            self._upload(path.name, path.read_bytes())

    @contextmanager
    def lock(self, owner: str, *, wait: bool) -> Iterator[None]:
        lease = Lease(self._remote, self._below, owner, str(self))
        with locked(self.path, wait=wait), lease.hold(wait=wait):
            self._lease = lease
            try:
                yield
            finally:
                self._lease = None

    def revoke_lease(self) -> None:
        self._remote.remove(f"{self._below}{LEASE_FILE}")

    def _stamp(self, name: str) -> Stamp | None:
        return self._remote.stamps(f"{self._below}{name}").get(f"{self._below}{name}")

    def _stamps(self) -> dict[str, Stamp]:
        """Return the stamps of all files in and below this folder, by their names in it."""
        found = self._remote.stamps(self._below)
        return {name.removeprefix(self._below): stamp for name, stamp in found.items()}

    def _fetch(self, name: str, stamp: Stamp | None) -> None:
        """Fetch a file unless the copy has this stamp; remove the copy if there is no file at the URL."""
        path = self.path / name
        if stamp is None:
            path.unlink(missing_ok=True)
            return
        if path.exists() and (path.stat().st_size, path.stat().st_mtime_ns) == stamp:
            return
        data = self._remote.read(f"{self._below}{name}")
        if data is not None:
            write_bytes(path, data)
            os.utime(path, ns=(stamp.written_ns, stamp.written_ns))

    def _upload(self, name: str, data: bytes) -> None:
        self._require_lease()
        self._remote.write(f"{self._below}{name}", data)

    def _require_lease(self) -> None:
        if self._lease is not None:
            self._lease.require()
