"""The cache of a node: tensors that no hyperparameter changes, computed once and read by all trials of the node.

A folder of the cache is named by the hash of everything that its content depends on. It holds units, which are numbered
safetensors files. A unit is written atomically and has a digest in its name, so that a damaged one is recognised and
computed again. It is memory-mapped, so that processes share its pages. A process that needs a missing unit leases and
computes it; the lease is a lock of the operating system, which ends with its process. So trials that start together
share the work.

<cache>/<key>/
    about.json                          the ingredients of the key, and the expected bytes of its units
    unit-<number>-<digest>.safetensors
    .claims                             locks: the leases of units, one byte per unit
    .in_use                             a lock: shared by the readers of the folder, exclusive for its eviction
<cache>/.lock                           a lock: held while folders are evicted and created
"""

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from kdtrain.storage.folder import Row, digest, locked, remove_temporary, user_cache, user_path, write_bytes

Tensors = dict[str, Tensor]
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOLCK)
"""Errors of a disk that is full, cannot be written to, or has no locks: callers then work without the cache."""
PATIENCE_S = 300.0
"""The time without any new unit after which a process computes units that others have leased, to the same bits."""
POLL_S = 0.02


def cache_folder() -> Path:
    """Return the cache folder of this node: $KDTRAIN_CACHE, or `shared` in the user's cache folder."""
    named = os.environ.get("KDTRAIN_CACHE")
    return user_path(named, "KDTRAIN_CACHE") if named else user_cache() / "shared"


class Cache:
    """All folders of a node's cache, within a budget of bytes; the least recently used folders are evicted."""

    def __init__(self, root: Path, budget_bytes: int) -> None:
        self.root, self.budget_bytes = root, budget_bytes

    def folder(self, ingredients: Row, expected_bytes: Callable[[], int]) -> "SharedFolder | None":
        """Return the folder for these ingredients, created if it is missing, held until it is closed.

        `expected_bytes` gives the size of all units; it is called only if the folder is missing. None: the folder is
        missing and does not fit into the budget beside those in use. OSError: the cache cannot be written to.
        """
        path = self.root / key_of(ingredients)
        wanted = None
        while True:
            shared = SharedFolder(path)
            if shared.hold():
                return shared
            wanted = expected_bytes() if wanted is None else wanted
            with locked(self.root, wait=True):
                if not path.exists():
                    if not self._make_room(wanted):
                        return None
                    path.mkdir()
                    about = {**ingredients, "expected_bytes": wanted}
                    write_bytes(path / "about.json", (json.dumps(about, indent=1) + "\n").encode())

    def filled_folder(
        self, ingredients: Row, expected_bytes: Callable[[], int], units: int, compute: Callable[[int], Tensors]
    ) -> "SharedFolder | str":
        """Return the folder with all its units, numbered from 0, or the reason why this node has none."""
        folder = None
        try:
            folder = self.folder(ingredients, expected_bytes)
            if folder is None:
                return f"no room within {self.budget_bytes:,} bytes (resources.cache_bytes)"
            folder.fill(range(units), compute)
        except BaseException as error:
            if folder is not None:
                folder.close()
            if isinstance(error, OSError) and error.errno in NO_ROOM:
                return f"{self.root} cannot be written to ({error.strerror})"
            raise
        return folder

    def _make_room(self, wanted: int) -> bool:
        """Evict unused folders, least recently used first, until `wanted` bytes fit; if they cannot fit, evict none."""
        for evicted in self.root.glob(".*.removed"):  # by a process that was killed meanwhile
            shutil.rmtree(evicted, ignore_errors=True)
        sizes = {path: _size_bytes(path) for path in self.root.iterdir() if _is_cache_folder(path)}
        unused = [path for path in sizes if not _is_in_use(path)]
        total = sum(sizes.values())
        if total - sum(sizes[path] for path in unused) + wanted > self.budget_bytes:
            return False
        for path in sorted(unused, key=lambda path: _mtime(path / ".in_use")):
            if total + wanted <= self.budget_bytes:
                break
            if _evict(path):
                total -= sizes[path]
        return total + wanted <= self.budget_bytes


class SharedFolder:
    """The units of one folder of the cache; `computed` counts those that this object has computed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.computed = 0
        self._verified: dict[int, Path] = {}  # the units whose digest this process has checked
        self._in_use: int | None = None
        self._leases: int | None = None

    def hold(self) -> bool:
        """Protect the folder from eviction until `close`; return False if there is no such folder (any more)."""
        self._in_use = _lock(self.path, fcntl.LOCK_SH)
        if self._in_use is None:
            return False
        os.utime(self.path / ".in_use")
        remove_temporary(self.path)
        return True

    def close(self) -> None:
        """Allow the eviction of the folder."""
        if self._in_use is not None:
            _unlock(self._in_use)
        if self._leases is not None:
            os.close(self._leases)
        self._in_use = self._leases = None

    def fill(self, units: Iterable[int], compute: Callable[[int], Tensors]) -> None:
        """Compute the missing units that no other process is computing, and wait for the others."""
        missing = [unit for unit in units if self._find(unit) is None]
        progress = time.monotonic()
        while missing:
            left = []
            for unit in missing:
                is_overdue = time.monotonic() > progress + PATIENCE_S
                if self._find(unit) is not None or self._try_compute(unit, compute, is_overdue):
                    progress = time.monotonic()
                else:
                    left.append(unit)
            if len(left) == len(missing):
                time.sleep(POLL_S)
            missing = left

    def load(self, unit: int) -> Tensors:
        """Return a unit's tensors, memory-mapped (do not write to them); KeyError if there is no such unit."""
        return safetensors.torch.load_file(self.file(unit))

    def file(self, unit: int) -> Path:
        """Return the file of a unit, its digest verified; raises as `load`."""
        path = self._find(unit)
        if path is None:
            raise KeyError(f"{self.path}: has no unit {unit}")
        return path

    def drop(self, unit: int) -> None:
        """Remove a unit, so that it is computed again."""
        self._verified.pop(unit, None)
        for path in self._files(unit):
            path.unlink(missing_ok=True)

    def _try_compute(self, unit: int, compute: Callable[[int], Tensors], is_overdue: bool) -> bool:
        """Compute a unit if it is missing; return False if another process has leased it, unless that is overdue."""
        with self._lease(unit) as is_ours:
            if not is_ours and not is_overdue:
                return False
            if self._find(unit) is None:
                self._write(unit, compute(unit))
        return True

    @contextmanager
    def _lease(self, unit: int) -> Iterator[bool]:
        """Yield True if this process now holds the lease of the unit, False if another process does."""
        if self._leases is None:
            self._leases = os.open(self.path / ".claims", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.lockf(self._leases, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, unit)
        except (BlockingIOError, PermissionError):
            yield False
            return
        try:
            yield True
        finally:
            fcntl.lockf(self._leases, fcntl.LOCK_UN, 1, unit)

    def _find(self, unit: int) -> Path | None:
        """Return the file of a unit, or None; remove a damaged one."""
        if unit in self._verified:
            return self._verified[unit]
        for path in self._files(unit):
            try:
                is_whole = path.stem.endswith(digest(path.read_bytes()))
            except FileNotFoundError:
                continue
            if is_whole:
                self._verified[unit] = path
                return path
            path.unlink(missing_ok=True)
        return None

    def _files(self, unit: int) -> Iterator[Path]:
        return self.path.glob(f"unit-{unit}-*.safetensors")

    def _write(self, unit: int, tensors: Tensors) -> None:
        data = safetensors.torch.save({name: value.cpu().contiguous() for name, value in tensors.items()})
        path = self.path / f"unit-{unit}-{digest(data)}.safetensors"
        write_bytes(path, data)
        self._verified[unit] = path
        self.computed += 1


def key_of(ingredients: dict[str, Any]) -> str:
    """Return 32 hexadecimal digits that identify everything that a folder's content depends on."""
    text = json.dumps(ingredients, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _lock(folder: Path, kind: int) -> int | None:
    """Return the handle of a folder's lock, or None if the folder is gone or another lock excludes this kind."""
    try:
        handle = os.open(folder / ".in_use", os.O_RDWR | os.O_CREAT, 0o644)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(handle, kind)
        if os.fstat(handle).st_ino == os.stat(folder / ".in_use").st_ino:
            return handle
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        os.close(handle)
        raise
    os.close(handle)  # another process has evicted the folder before it was locked here
    return None


def _unlock(handle: int) -> None:
    fcntl.flock(handle, fcntl.LOCK_UN)  # closing alone keeps the lock while a child process has inherited the handle
    os.close(handle)


def _is_in_use(folder: Path) -> bool:
    handle = _lock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if handle is not None:
        _unlock(handle)
    return handle is None


def _evict(folder: Path) -> bool:
    """Remove a folder unless it is in use. It is renamed first, so that nobody opens one that is half removed."""
    handle = _lock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if handle is None:
        return False
    evicted = folder.with_name(f".{uuid.uuid4().hex}.removed")
    folder.rename(evicted)
    _unlock(handle)
    shutil.rmtree(evicted, ignore_errors=True)
    return True


def _is_cache_folder(path: Path) -> bool:
    """Return True for a name that `key_of` has made; everything else in the cache folder is left alone."""
    return re.fullmatch(r"[0-9a-f]{32}", path.name) is not None and path.is_dir()


def _size_bytes(folder: Path) -> int:
    """Return the size of the units, or the expected size while units are missing."""
    size = 0
    for file in folder.glob("unit-*"):
        try:
            size += file.stat().st_size
        except FileNotFoundError:
            continue
    try:
        return max(size, int(json.loads((folder / "about.json").read_text())["expected_bytes"]))
    except (OSError, ValueError, KeyError):
        return size


def _mtime(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except FileNotFoundError:
        return 0.0
