"""Data sets at a URL, fetched once by each machine: a folder of files, or one archive of them."""

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


def fetched(url: str) -> Path:
    """The folder of this machine that holds what lies at a URL; whoever comes first fetches it, others wait.

    Verified by the sizes that the URL's listing gives, and by digests where it has a SHA256SUMS; complete or not there.
    What has changed at the URL since is not noticed: give other data another name. Raises UserError where there is
    nothing, or something else than was listed; OSError where it does not fit onto the disk.
    """
    folder = user_cache() / "data" / digest(url.encode())
    with locked(folder.with_name(f"{folder.name}.lock"), wait=True):
        if not (folder / WHOLE).exists():
            shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed while it fetched
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
        raise UserError(f"--data: {name} of {at.url} has {len(data)} bytes, and its listing says {size}; try again")
    if wanted is not None and hashlib.sha256(data).hexdigest() != wanted:
        raise UserError(f"--data: {name} of {at.url} is not what its {SUMS} says: it is damaged there")
    write_bytes(folder / name, data)


def _require_inside(name: str, url: str) -> None:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise UserError(f"--data: {url} has a file {name}, which would lie outside of the folder")


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
    """Only files, and inside of the folder; tarfile's own filter for that is younger than Python 3.11."""
    folder.mkdir()
    for member in archive:
        _require_inside(member.name, url)
        if member.isdir():
            continue
        if (source := archive.extractfile(member) if member.isreg() else None) is None:
            raise UserError(
                f"--data: {member.name} of {url} is a link or a device, and only files are unpacked; tar's"
                " --dereference --hard-dereference pack what links lead to"
            )
        target = folder / member.name
        target.parent.mkdir(parents=True, exist_ok=True)
        with source, target.open("wb") as file:
            shutil.copyfileobj(source, file)


def _sums(text: bytes) -> dict[str, str]:
    """{name: digest} of what sha256sum has written."""
    rows = (line.split(maxsplit=1) for line in text.decode().splitlines() if line.strip())
    return {name.lstrip("*").removeprefix("./"): digest for digest, name in rows}
