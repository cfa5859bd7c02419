"""Data sets at a URL, a folder or a tar archive, which each machine downloads once."""

import gzip
import hashlib
import json
import lzma
import re
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from kdtrain.errors import UserError, shortened
from kdtrain.storage.folder import TRANSFERS, digest, locked, user_cache, write_bytes
from kdtrain.storage.remote import RemoteFiles

CHUNK_BYTES = 1 << 20
WHOLE = ".whole.json"
SUMS = "SHA256SUMS"
SUM = re.compile(r"(?P<digest>[0-9a-fA-F]{64}) [ *](?P<name>.+)")
ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.xz")


def download(url: str) -> Path:
    """Download a URL once and return the local folder; other processes of the machine wait for the first.

    The sizes of the URL's listing, and the digests of its SHA256SUMS if there is one, are verified. Later changes at
    the URL are not noticed, so changed data need another name.

    Args:
        url: A folder, or a tar archive by its ending.

    Raises:
        UserError: The URL cannot be reached, has no file, its files do not match listing or digests, or the disk is
            full.
    """
    folder = user_cache() / "data" / digest(url.encode())
    with locked(folder.with_name(f"{folder.name}.lock"), wait=True):
        if not (folder / WHOLE).exists():
            shutil.rmtree(folder, ignore_errors=True)  # left by a process that was killed during its download
            try:
                _fetch(url, folder)
            except OSError as error:
                raise UserError(f"--data: {url} cannot be downloaded ({error.strerror or error})") from None
    return folder


def _fetch(url: str, folder: Path) -> None:
    if url.partition("?")[0].endswith(ARCHIVES):
        _fetch_archive(url, folder)
        count = sum(path.is_file() for path in folder.rglob("*"))
    else:
        at = RemoteFiles(url, "--data")
        sizes = {name: size for name, (size, _) in at.stamps().items()}
        if not sizes:
            raise UserError(f"--data: {url} holds no file")
        sums = _sums(at.read(SUMS) or b"", url)
        with ThreadPoolExecutor(TRANSFERS) as pool:
            list(pool.map(lambda name: _fetch_file(at, folder, name, sizes[name], sums.get(name)), sizes))
        count = len(sizes)
    write_bytes(folder / WHOLE, json.dumps({"url": url, "files": count}).encode())


def _fetch_file(at: RemoteFiles, folder: Path, name: str, size: int, wanted: str | None) -> None:
    _require_inside(name, at.url)
    data = at.read(name) or b""
    if len(data) != size:
        raise UserError(
            f"--data: {name} of {at.url} must have the {size} bytes of the listing, got {len(data)}; try again"
        )
    if wanted is not None and hashlib.sha256(data).hexdigest() != wanted:
        raise UserError(f"--data: {name} of {at.url} must match the digest in {SUMS}; the file there is damaged")
    write_bytes(folder / name, data)


def _require_inside(name: str, url: str) -> None:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise UserError(f"--data: files must be inside the folder, got {name} in {url}")


def _fetch_archive(url: str, folder: Path) -> None:
    parent, _, name = url.partition("?")[0].rpartition("/")
    query = url.partition("?")[2]
    at = RemoteFiles(f"{parent}?{query}" if query else parent, "--data")
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".archive-") as scratch:
        unpacked = Path(scratch) / "unpacked"
        try:
            with (
                at.files.open_input_stream(f"{at.base}/{name}", compression=None) as stream,
                _decompressed(stream, name) as content,
                tarfile.open(fileobj=content, mode="r|") as archive,
            ):
                _unpack(archive, unpacked, url)
                while content.read(CHUNK_BYTES):  # what is behind the last file has a part in the checksum
                    pass
        except FileNotFoundError:
            raise UserError(f"--data: {url} holds no file") from None
        except (tarfile.TarError, EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error) as error:
            raise UserError(f"--data: {url} cannot be unpacked ({error})") from None
        unpacked.rename(folder)


@contextmanager
def _decompressed(stream: IO[bytes], name: str) -> Iterator["IO[bytes] | gzip.GzipFile | lzma.LZMAFile"]:
    """Give the content of a stream by its name's ending.

    tarfile's own decompression of streams does not compare gzip's checksum.
    """
    if name.endswith((".gz", ".tgz")):
        with gzip.open(stream) as content:
            yield content
    elif name.endswith(".xz"):
        with lzma.open(stream) as content:
            yield content
    else:
        yield stream


def _unpack(archive: tarfile.TarFile, folder: Path, url: str) -> None:
    """Unpack files, all inside the folder. tarfile's own filter for that needs a later Python than 3.11.0."""
    folder.mkdir()
    for member in archive:
        _require_inside(member.name, url)
        if member.isdir():
            continue
        if (source := archive.extractfile(member) if member.isreg() else None) is None:
            raise UserError(
                f"--data: members must be files, got the link or device {member.name} in {url}; pack with tar's"
                " --dereference --hard-dereference"
            )
        target = folder / member.name
        target.parent.mkdir(parents=True, exist_ok=True)
        with source, target.open("wb") as file:
            shutil.copyfileobj(source, file)


def _sums(text: bytes, url: str) -> dict[str, str]:
    """Parse the output of sha256sum into {name: digest}; UserError if it is something else."""
    sums = {}
    for number, line in enumerate(text.decode(errors="surrogateescape").splitlines(), 1):
        row = SUM.fullmatch(line)
        if row is None and line.strip():
            raise UserError(
                f"--data: {url}/{SUMS}:{number}: must be a SHA-256 digest and a name, got {shortened(line)}"
            )
        if row is not None:
            sums[row["name"].removeprefix("./")] = row["digest"].lower()
    return sums
