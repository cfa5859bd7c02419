"""Digests of the contents of image files: each file is read once, then recognised by inode, size and times."""

import hashlib
import json
import os
import stat as modes
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property
from pathlib import Path

from kdtrain.errors import UserError
from kdtrain.storage.cache import cache_folder
from kdtrain.storage.folder import digest, write_bytes

READERS = 8
"""Threads that read at the same time: hashing needs no global lock, and a network's disk answers slowly."""
CHUNK_FILES = 256
STAMPS = 4
"""Remembered digests of one path: as many machines may share a cache folder but not the file behind the path."""
SETTLED_NS = 3_000_000_000
"""The age from which a change of a file is certain to alter its times; a younger file's digest is not remembered."""

Memo = dict[str, dict[str, str]]
"""The digests of a path's content, by the stamp that the file then had, the oldest first."""


class FileContents:
    """The contents of a data set's image files, as digests of 32 hexadecimal digits.

    They are computed when the first one is needed, and remembered in the cache folder of this machine.

    Args:
        folder: The data set's folder.
        files: The image files.
    """

    def __init__(self, folder: Path, files: Sequence[Path]) -> None:
        self.folder = folder
        self._files = files

    def of(self, files: Sequence[Path]) -> list[str]:
        """Return the digests of some of the files; UserError if one of them cannot be read."""
        return [self._digests[file] for file in files]

    @cached_property
    def _digests(self) -> dict[Path, str]:
        memo_file = cache_folder() / "contents" / f"{digest(os.fsencode(self.folder))}.json"
        memo = _read(memo_file)
        chunks = [self._files[first : first + CHUNK_FILES] for first in range(0, len(self._files), CHUNK_FILES)]

        def recognise(files: Sequence[Path]) -> list[tuple[str, str | None]]:
            return [_recognise(file, memo.get(str(file), {})) for file in files]

        with ThreadPoolExecutor(READERS) as readers:
            found = [each for chunk in readers.map(recognise, chunks) for each in chunk]
        is_new = False
        for file, (content, stamp) in zip(self._files, found, strict=True):
            if stamp is not None:
                is_new = True
                known = memo.setdefault(str(file), {})
                known[stamp] = content
                for oldest in list(known)[:-STAMPS]:
                    del known[oldest]
        if is_new:
            with suppress(OSError):  # a disk that is full or read-only: the files are read again next time
                write_bytes(memo_file, json.dumps(memo).encode())
        return {file: content for file, (content, _) in zip(self._files, found, strict=True)}


def _recognise(file: Path, known: dict[str, str]) -> tuple[str, str | None]:
    """Return the digest of a file's content, and the stamp under which to remember it, if it is new and settled."""
    try:
        stat = os.stat(file)
        if not modes.S_ISREG(stat.st_mode):  # to open a pipe would wait for its writer
            raise UserError(f"{file}: is not a file")
        stamp = f"{stat.st_dev}:{stat.st_ino}:{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ctime_ns}"
        if stamp in known:
            return known[stamp], None
        now = time.time_ns()
        with file.open("rb") as content:
            found = hashlib.file_digest(content, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror or error})") from None
    return found, stamp if stat.st_ctime_ns < now - SETTLED_NS else None


def _read(memo_file: Path) -> Memo:
    """Return what is remembered; nothing if there is no file, or if it is damaged."""
    try:
        memo = json.loads(memo_file.read_bytes())
    except (OSError, ValueError):
        return {}
    return memo if isinstance(memo, dict) else {}
