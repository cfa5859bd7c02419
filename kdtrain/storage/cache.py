"""What no hyperparameter changes, computed once on a node and read by all its trials: folders of units.

A folder is named by the hash of everything that its content depends on. Its units are safetensors files, written whole
(a reader sees none or all of it), with a digest in their names (what was cut off or changed is computed again), and
memory-mapped, so that the pages are shared between processes. Who needs units that are missing computes them: each is
claimed by a lock that goes with its process, so that trials that start together share the work.

<cache>/<key>/
    about.json                          the ingredients of the key, and the bytes that its units will take
    unit-<number>-<digest>.safetensors
    .claims, .in_use                    locks
<cache>/.lock                           held while room is made
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

from kdtrain.storage.folder import Row, digest, user_cache, write_bytes

Tensors = dict[str, Tensor]
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOLCK)
"""Where a cache cannot be written to, or has no locks: then it is done without."""
PATIENCE_S = 300.0
"""How long a unit is waited for that another process has claimed, since the last one came: then it is computed here
too, to the same bits."""
POLL_S = 0.02


def cache_folder() -> Path:
    """KDTRAIN_CACHE, or kdtrain/shared in the user's cache folder."""
    named = os.environ.get("KDTRAIN_CACHE")
    return Path(named) if named else user_cache() / "shared"


class Cache:
    """All shared folders of a node, within a budget of bytes; the least recently used make room."""

    def __init__(self, root: Path, budget_bytes: int) -> None:
        self.root, self.budget_bytes = root, budget_bytes

    def folder(self, ingredients: Row, expected_bytes: Callable[[], int]) -> "SharedFolder | None":
        """The folder of these ingredients, held for reading until it is closed; None where it is not there yet and its
        bytes do not fit into the budget beside what running trials hold. Raises OSError where nothing can be written.
        """
        path = self.root / key_of(ingredients)
        wanted = None
        while True:
            shared = SharedFolder(path)
            if shared.hold():
                return shared
            wanted = expected_bytes() if wanted is None else wanted
            with self._alone():
                if not path.exists():
                    if not self._make_room(wanted):
                        return None
                    path.mkdir()
                    about = {**ingredients, "expected_bytes": wanted}
                    write_bytes(path / "about.json", (json.dumps(about, indent=1) + "\n").encode())

    @property
    def no_room(self) -> str:
        """Said where `folder` gives None."""
        return f"no room within {self.budget_bytes:,} bytes (resources.cache_bytes)"

    def unwritable(self, error: OSError) -> str:
        """Said of an error in NO_ROOM."""
        return f"{self.root} cannot be written to ({error.strerror})"

    def used_bytes(self) -> int:
        return sum(_size(path) for path in self._folders())

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Of all processes the only one that makes room or a new folder."""
        self.root.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.root / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def _make_room(self, wanted: int) -> bool:
        """Removes folders that nobody holds, the least recently used first, until so many bytes fit; none where they
        would not fit even so."""
        for doomed in self.root.glob(".*.removed"):  # by a process that died meanwhile
            shutil.rmtree(doomed, ignore_errors=True)
        used = {path: _size(path) for path in self._folders()}
        free = {path: size for path, size in used.items() if not _held(path)}
        total = sum(used.values())
        if total - sum(free.values()) + wanted > self.budget_bytes:
            return False
        for path in sorted(free, key=lambda path: _mtime(path / ".in_use")):
            if total + wanted <= self.budget_bytes:
                break
            if _remove_unless_held(path):
                total -= used[path]
        return total + wanted <= self.budget_bytes

    def _folders(self) -> list[Path]:
        """Those that are named as ours are: whatever else lies there is not touched."""
        found = self.root.iterdir() if self.root.is_dir() else ()
        return [path for path in found if re.fullmatch(r"[0-9a-f]{32}", path.name) and path.is_dir()]


class SharedFolder:
    """One folder's units, by number. `hold` it before use and `close` it: meanwhile nobody removes it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.computed = 0  # units, by this object
        self._whole: dict[int, Path] = {}  # whose digest this process has seen to be right
        self._in_use: int | None = None
        self._claims: int | None = None

    def hold(self) -> bool:
        """False where there is no such folder, or it was removed at this very moment."""
        handle = _locked(self.path, fcntl.LOCK_SH)
        if handle is None:
            return False
        os.utime(self.path / ".in_use")
        self._in_use = handle
        return True

    def close(self) -> None:
        if self._in_use is not None:
            _unlocked(self._in_use)
        if self._claims is not None:
            os.close(self._claims)
        self._in_use = self._claims = None

    def fill(self, units: Iterable[int], compute: Callable[[int], Tensors]) -> None:
        """Until each unit is there: computes those that nobody else is computing. Raises what `compute` raises, and
        OSError where a unit cannot be written."""
        missing = [unit for unit in units if self._find(unit) is None]
        progress = time.monotonic()
        while missing:
            left = []
            for unit in missing:
                impatient = time.monotonic() > progress + PATIENCE_S
                if self._find(unit) is not None or self._computed_here(unit, compute, impatient):
                    progress = time.monotonic()
                else:
                    left.append(unit)
            if len(left) == len(missing):
                time.sleep(POLL_S)
            missing = left

    def _computed_here(self, unit: int, compute: Callable[[int], Tensors], impatient: bool) -> bool:
        """False where another process has claimed it, unless it is waited for no longer."""
        if not self._claim(unit) and not impatient:
            return False
        try:
            if self._find(unit) is None:
                self._write(unit, compute(unit))
        finally:
            self._release(unit)
        return True

    def load(self, unit: int) -> Tensors:
        """A unit that is there, memory-mapped: not to be written to. Raises KeyError for one that is missing."""
        return safetensors.torch.load_file(self.file(unit))

    def file(self, unit: int) -> Path:
        """Return the file of a unit that is there, its digest verified. Raises KeyError for one that is missing."""
        path = self._find(unit)
        if path is None:
            raise KeyError(f"{self.path}: has no unit {unit}")
        return path

    def drop(self, unit: int) -> None:
        """Forgets a unit, so that it is computed again."""
        self._whole.pop(unit, None)
        for path in self.path.glob(f"unit-{unit}-*.safetensors"):
            path.unlink(missing_ok=True)

    def _find(self, unit: int) -> Path | None:
        """Its file, if it is whole; one that is not is removed."""
        if unit in self._whole:
            return self._whole[unit]
        for path in self.path.glob(f"unit-{unit}-*.safetensors"):
            try:
                whole = path.stem.endswith(digest(path.read_bytes()))
            except FileNotFoundError:
                continue
            if whole:
                self._whole[unit] = path
                return path
            path.unlink(missing_ok=True)
        return None

    def _write(self, unit: int, tensors: Tensors) -> None:
        data = safetensors.torch.save({name: value.cpu().contiguous() for name, value in tensors.items()})
        path = self.path / f"unit-{unit}-{digest(data)}.safetensors"
        write_bytes(path, data)
        self._whole[unit] = path
        self.computed += 1

    def _claim(self, unit: int) -> bool:
        if self._claims is None:
            self._claims = os.open(self.path / ".claims", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.lockf(self._claims, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, unit)
        except (BlockingIOError, PermissionError):
            return False
        return True

    def _release(self, unit: int) -> None:
        assert self._claims is not None
        fcntl.lockf(self._claims, fcntl.LOCK_UN, 1, unit)


def key_of(ingredients: dict[str, Any]) -> str:
    """32 hexadecimal digits of everything that a folder's content depends on."""
    text = json.dumps(ingredients, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _locked(folder: Path, kind: int) -> int | None:
    """The handle of a folder's lock; None where the folder is gone, or another process holds it against this kind."""
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
    os.close(handle)  # of what was removed, or put elsewhere, before the lock was there
    return None


def _unlocked(handle: int) -> None:
    """Whatever child process has inherited it."""
    fcntl.flock(handle, fcntl.LOCK_UN)
    os.close(handle)


def _held(folder: Path) -> bool:
    handle = _locked(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if handle is not None:
        _unlocked(handle)
    return handle is None


def _remove_unless_held(folder: Path) -> bool:
    """Renamed first, so that nobody opens what is half removed."""
    handle = _locked(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if handle is None:
        return False
    doomed = folder.with_name(f".{uuid.uuid4().hex}.removed")
    folder.rename(doomed)
    _unlocked(handle)
    shutil.rmtree(doomed, ignore_errors=True)
    return True


def _size(folder: Path) -> int:
    """Of its units, or what they are expected to take once they are there."""
    sizes = 0
    for file in folder.glob("unit-*"):
        try:
            sizes += file.stat().st_size
        except FileNotFoundError:
            continue
    try:
        return max(sizes, int(json.loads((folder / "about.json").read_text())["expected_bytes"]))
    except (OSError, ValueError, KeyError):
        return sizes


def _mtime(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except FileNotFoundError:
        return 0.0
