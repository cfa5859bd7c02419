"""Files at a URL, through pyarrow's file systems (s3://, gs://, abfs://, hdfs://, file://) and those of fsspec."""

import re
import uuid
from collections.abc import Callable
from functools import wraps
from typing import Any, NamedTuple, ParamSpec, TypeVar

from kdtrain.errors import PASSWORD, UserError

ATOMIC_UPLOADS = ("s3", "gcs", "abfs")
"""pyarrow's names of the file systems in which a file appears when all of it has been written."""


SECRET_OPTION = re.compile(r"[?&][^=&]*(secret|password|token|key|sig)[^=&]*=|\?.*@", re.IGNORECASE)
CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "abfs": "AZURE_CLIENT_ID, AZURE_TENANT_ID and AZURE_CLIENT_SECRET",
}
"""The environment variables from which a file system takes secrets."""


def require_url(url: str, option: str) -> None:
    """Raise UserError if a URL contains a secret, because it is written into files, or bytes that are not UTF-8."""
    scheme = url.partition("://")[0]
    if PASSWORD.search(url) or SECRET_OPTION.search(url):
        names = CREDENTIALS.get(scheme, " or ".join(CREDENTIALS.values()))
        shown = PASSWORD.sub(r"\1***@", url.partition("?")[0])
        text = f"{shown} must not contain a secret, because a URL is written into files; set {names} in the environment"
        raise UserError(f"{option}: {text}")
    if not url.isprintable():
        raise UserError(f"{option}: {url} must be a URL of printable characters")


P = ParamSpec("P")
T = TypeVar("T")


def _raises_os_errors(method: Callable[P, T]) -> Callable[P, T]:
    """Turn exceptions of other packages into OSError, which callers expect of files."""

    @wraps(method)
    def wrapped(*args: P.args, **options: P.kwargs) -> T:
        try:
            return method(*args, **options)
        except OSError:
            raise
        except Exception as error:
            raise OSError(f"{type(error).__name__}: {error}") from error

    return wrapped


class Stamp(NamedTuple):
    """A file's size and time of writing, by which a changed file is recognised."""

    size_bytes: int
    written_ns: int


class RemoteFiles:
    """All files below a URL, by their relative names with slashes. Methods raise OSError if it cannot be reached."""

    def __init__(self, url: str, option: str) -> None:
        """Connect to a URL, which the command line's `option` has named.

        Its query holds options of the file system, as in
        s3://bucket/path?endpoint_override=http://127.0.0.1:9000&region=us-east-1

        Raises:
            UserError: The URL cannot be reached, names no folder, or contains a secret.
        """
        require_url(url, option)
        self.url = url
        try:
            self.files, self.base = _file_system(url)
            self.files.get_file_info(self.base)
        except Exception as error:  # each file system of fsspec raises exceptions of its own
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UserError(f"{option}: {url} cannot be reached ({reason})") from None
        if not self.base:
            raise UserError(f"{option}: {url} names no folder")
        self._uploads_are_atomic = self.files.type_name in ATOMIC_UPLOADS

    @_raises_os_errors
    def read(self, name: str) -> bytes | None:
        """Return the whole file, or None if there is none."""
        try:
            with self.files.open_input_stream(f"{self.base}/{name}", compression=None) as stream:
                return bytes(stream.read())
        except FileNotFoundError:
            return None

    @_raises_os_errors
    def write(self, name: str, data: bytes) -> None:
        """Write a file atomically: readers see the old file or the whole new one."""
        path = f"{self.base}/{name}"
        if self._uploads_are_atomic:
            self._put(path, data)
            return
        folder, _, own = path.rpartition("/")
        self.files.create_dir(folder, recursive=True)
        temporary = f"{folder}/.{own}.{uuid.uuid4().hex}"
        self._put(temporary, data)
        self.files.move(temporary, path)

    @_raises_os_errors
    def remove(self, name: str) -> None:
        """Remove a file, if there is one."""
        try:
            self.files.delete_file(f"{self.base}/{name}")
        except FileNotFoundError:
            return

    @_raises_os_errors
    def clear(self, folder: str) -> None:
        """Remove a folder with all that is in it, if there is one."""
        try:
            self.files.delete_dir(f"{self.base}/{folder}".rstrip("/"))
        except FileNotFoundError:
            return

    @_raises_os_errors
    def stamps(self, folder: str = "") -> dict[str, Stamp]:
        """Return the stamps of all files in and below a folder by name; none if there is no folder."""
        from pyarrow import fs

        path = f"{self.base}/{folder}".rstrip("/")
        own = self.files.get_file_info(path)
        if own.type == fs.FileType.File:
            found = [own]
        else:
            found = self.files.get_file_info(fs.FileSelector(path, allow_not_found=True, recursive=True))
        return {
            info.path.removeprefix(f"{self.base}/"): Stamp(info.size, info.mtime_ns or 0)
            for info in found
            if info.type == fs.FileType.File
        }

    def _put(self, path: str, data: bytes) -> None:
        with self.files.open_output_stream(path, compression=None) as stream:
            stream.write(data)


def _file_system(url: str) -> tuple[Any, str]:
    """Return the file system and the path in it; ImportError if neither pyarrow nor fsspec knows the scheme."""
    from pyarrow import ArrowInvalid, fs

    try:
        files, path = fs.FileSystem.from_uri(url)
    except ArrowInvalid as error:
        if "Unrecognized" not in str(error):
            raise
        import fsspec

        own, path = fsspec.core.url_to_fs(url)
        files = fs.PyFileSystem(fs.FSSpecHandler(own))
    return files, path.rstrip("/")
