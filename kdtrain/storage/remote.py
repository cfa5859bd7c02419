"""Folders at a URL, through pyarrow's file systems: s3://, gs://, abfs://, hdfs://, file://, and what fsspec adds."""

import uuid
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from kdtrain.errors import UserError
from kdtrain.storage.folder import Folder, digest, user_cache

WHOLE_BY_NATURE = ("s3", "gcs", "abfs")
"""File systems whose files appear when their writing has ended."""


def results_folder(written: str) -> Folder:
    """What --results names: a folder, or a URL with a copy in the user's cache folder. UserError for a URL that cannot
    be reached."""
    if "://" not in written:
        return Folder(Path(written))
    if "@" in urlsplit(written).netloc:
        raise UserError("--results: a URL is written into files; leave the secret out and set it in the environment")
    distant = AtUrl(written, "--results")
    return Folder(user_cache() / "results" / digest(written.encode()), distant)


class AtUrl:
    """`Distant` of files.py. The query of a URL is its file system's:
    s3://bucket/path?endpoint_override=http://127.0.0.1:9000&region=us-east-1"""

    def __init__(self, url: str, place: str) -> None:
        """place: which option names it. Raises UserError where nothing answers there."""
        self.url = url
        try:
            self.files, self.base = _file_system(url)
            self._type_of(self.base)
        except (OSError, ValueError, ImportError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UserError(f"{place}: {url} cannot be reached ({reason})") from None
        if not self.base:
            raise UserError(f"{place}: {url} names no folder")
        self._whole_by_nature = self.files.type_name in WHOLE_BY_NATURE

    def read(self, name: str) -> bytes | None:
        try:
            with self.files.open_input_stream(f"{self.base}/{name}", compression=None) as stream:
                return bytes(stream.read())
        except FileNotFoundError:
            return None

    def write(self, name: str, data: bytes) -> None:
        path = f"{self.base}/{name}"
        if self._whole_by_nature:
            self._put(path, data)
            return
        folder, _, own = path.rpartition("/")
        self.files.create_dir(folder, recursive=True)
        temporary = f"{folder}/.{own}.{uuid.uuid4().hex}"
        self._put(temporary, data)
        self.files.move(temporary, path)

    def remove(self, name: str) -> None:
        try:
            self.files.delete_file(f"{self.base}/{name}")
        except FileNotFoundError:
            return

    def clear(self, folder: str) -> None:
        try:
            self.files.delete_dir(f"{self.base}/{folder}".rstrip("/"))
        except FileNotFoundError:
            return

    def stamps(self, folder: str = "") -> dict[str, tuple[int, int]]:
        from pyarrow import fs

        path = f"{self.base}/{folder}".rstrip("/")
        own = self.files.get_file_info(path)
        if own.type == fs.FileType.File:
            found = [own]
        else:
            found = self.files.get_file_info(fs.FileSelector(path, allow_not_found=True, recursive=True))
        return {
            info.path.removeprefix(f"{self.base}/"): (info.size, info.mtime_ns or 0)
            for info in found
            if info.type == fs.FileType.File
        }

    def _put(self, path: str, data: bytes) -> None:
        with self.files.open_output_stream(path, compression=None) as stream:
            stream.write(data)

    def _type_of(self, path: str) -> Any:
        return self.files.get_file_info(path).type


def _file_system(url: str) -> tuple[Any, str]:
    """(file system, path in it). ImportError where neither pyarrow nor an installed fsspec knows the scheme."""
    from pyarrow import ArrowInvalid, fs

    try:
        files, path = fs.FileSystem.from_uri(url)
    except ArrowInvalid as error:
        if "Unrecognized" not in str(error):
            raise
        import fsspec

        scheme, path = urlsplit(url).scheme, url.partition("://")[2]
        files = fs.PyFileSystem(fs.FSSpecHandler(fsspec.filesystem(scheme)))
    return files, path.rstrip("/")
