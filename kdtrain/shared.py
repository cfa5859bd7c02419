"""What no hyperparameter changes, computed once on a node and read by all its trials: folders of units.

A folder is named by the hash of everything that its content depends on. Its units are safetensors files, written whole
(a reader sees none or all of it), with a digest in their names (what was cut off or changed is computed again), and
memory-mapped, so that the pages are shared between processes. Who needs units that are missing computes them: each is
claimed by a lock that goes with its process, so that trials that start together share the work.

<cache>/<key>/
    about.json                          the ingredients of the key
    unit-<number>-<digest>.safetensors
    .claims, .in_use                    locks
"""

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from kdtrain.files import Row, digest, user_cache, write_bytes

Tensors = dict[str, Tensor]
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
"""Where a cache cannot be written to: then it is done without."""
PATIENCE_S = 300.0
"""How long a unit is waited for that another process has claimed: then it is computed here too, to the same bits."""
POLL_S = 0.02


def cache_folder() -> Path:
    """KDTRAIN_CACHE, or kdtrain/shared in the user's cache folder: of this node, whatever other nodes have."""
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
        name = key_of(ingredients)
        while True:
            path = self.root / name
            if not path.exists() and not self._make_room(expected_bytes()):
                return None
            path.mkdir(parents=True, exist_ok=True)
            shared = SharedFolder(path)
            if shared.hold():
                if not (path / "about.json").exists():
                    write_bytes(path / "about.json", (json.dumps(ingredients, indent=1) + "\n").encode())
                return shared

    @property
    def no_room(self) -> str:
        """Said where `folder` gives None."""
        return f"no room within {self.budget_bytes:,} bytes (resources.cache_bytes)"

    def unwritable(self, error: OSError) -> str:
        """Said of an error in NO_ROOM."""
        return f"{self.root} cannot be written to ({error.strerror})"

    def used_bytes(self) -> int:
        return sum(_size(path) for path in self._folders())

    def _make_room(self, wanted: int) -> bool:
        """Removes folders that nobody holds, the least recently used first, until so many bytes fit."""
        if wanted > self.budget_bytes:
            return False
        by_age = sorted(self._folders(), key=lambda path: _mtime(path / ".in_use"))
        used = {path: _size(path) for path in by_age}
        total = sum(used.values())
        for path in by_age:
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
        """False where the folder was removed at this very moment."""
        handle = os.open(self.path / ".in_use", os.O_RDWR | os.O_CREAT, 0o644)
        fcntl.flock(handle, fcntl.LOCK_SH)
        try:
            held = os.fstat(handle).st_ino == os.stat(self.path / ".in_use").st_ino
        except FileNotFoundError:
            held = False
        if not held:
            os.close(handle)
            return False
        os.utime(self.path / ".in_use")
        self._in_use = handle
        return True

    def close(self) -> None:
        for handle in (self._in_use, self._claims):
            if handle is not None:
                os.close(handle)
        self._in_use = self._claims = None

    def fill(self, units: Iterable[int], compute: Callable[[int], Tensors]) -> None:
        """Until each unit is there: computes those that nobody else is computing. Raises what `compute` raises, and
        OSError where a unit cannot be written."""
        missing = [unit for unit in units if self._find(unit) is None]
        deadline = time.monotonic() + PATIENCE_S
        while missing:
            left = []
            for unit in missing:
                if self._find(unit) is not None:
                    continue
                impatient = time.monotonic() > deadline
                if not self._claim(unit) and not impatient:
                    left.append(unit)
                    continue
                try:
                    if self._find(unit) is None:
                        self._write(unit, compute(unit))
                finally:
                    self._release(unit)
            if len(left) < len(missing):
                deadline = time.monotonic() + PATIENCE_S
            else:
                time.sleep(POLL_S)
            missing = left

    def load(self, unit: int) -> Tensors:
        """A unit that is there, memory-mapped: not to be written to. Raises KeyError for one that is missing."""
        path = self._find(unit)
        if path is None:
            raise KeyError(f"{self.path}: has no unit {unit}")
        return safetensors.torch.load_file(path)

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


def _remove_unless_held(path: Path) -> bool:
    """Renamed first, so that nobody opens what is half removed."""
    try:
        handle = os.open(path / ".in_use", os.O_RDWR | os.O_CREAT, 0o644)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        doomed = path.with_name(f".{path.name}.{os.getpid()}")
        path.rename(doomed)
    except (BlockingIOError, FileNotFoundError):
        return False
    finally:
        os.close(handle)
    shutil.rmtree(doomed, ignore_errors=True)
    return True


def _size(folder: Path) -> int:
    sizes = 0
    for file in folder.glob("unit-*"):
        try:
            sizes += file.stat().st_size
        except FileNotFoundError:
            continue
    return sizes


def _mtime(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except FileNotFoundError:
        return 0.0
