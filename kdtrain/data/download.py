"""Data sets at a URL, a folder or a tar archive, which each machine downloads once."""

import hashlib
import json
import shutil
import tarfile
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from kdtrain.errors import UserError
from kdtrain.storage.folder import TRANSFERS, digest, locked, user_cache, write_bytes
from kdtrain.storage.remote import RemoteFiles

WHOLE = ".whole.json"
SUMS = "SHA256SUMS"
ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.xz")


def download(url: str) -> Path:
    """Download a URL once and return the local folder; other processes of the machine wait for the first.

    The sizes of the URL's listing, and the digests of its SHA256SUMS if there is one, are verified. Later changes at
    the URL are not noticed, so changed data need another name.

    Args:
        url: A folder, or a tar archive by its ending.

    Raises:
        UserError: The URL has no file, or its files do not match listing or digests.
        OSError: The disk is full.
    """
    folder = user_cache() / "data" / digest(url.encode())
    with locked(folder.with_name(f"{folder.name}.lock"), wait=True):
        if not (folder / WHOLE).exists():
            shutil.rmtree(folder, ignore_errors=True)  # left by a process that was killed during its download
            _fetch(url, folder)
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
        sums = _sums(at.read(SUMS) or b"")
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
                tarfile.open(fileobj=stream, mode="r|*") as archive,
            ):
                _unpack(archive, unpacked, url)
        except FileNotFoundError:
            raise UserError(f"--data: {url} holds no file") from None
        except tarfile.TarError as error:
            raise UserError(f"--data: {url} cannot be unpacked ({error})") from None
        unpacked.rename(folder)


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


def _sums(text: bytes) -> dict[str, str]:
    """Parse the output of sha256sum into {name: digest}."""
    rows = (line.split(maxsplit=1) for line in text.decode().splitlines() if line.strip())
    return {name.lstrip("*").removeprefix("./"): digest for digest, name in rows}
