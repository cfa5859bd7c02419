"""Data at a URL: fetched once, whole and checked, or a sentence."""

import hashlib
import tarfile
from pathlib import Path

import pytest

from kdtrain.data.registry import data_folder, named_data
from kdtrain.errors import UserError
from kdtrain.storage.mirror import results_folder
from kdtrain.storage.remote import RemoteFiles


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def there(tmp_path: Path) -> Path:
    folder = tmp_path / "there"
    for name in ("MNIST/raw/images.gz", "birds/train/a/1.jpg"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes(name.encode())
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name[0] != "."
    }


def test_a_folder_comes_once_as_it_is(there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = data_folder(f"file://{there}")
    assert content(fetched) == content(there)
    monkeypatch.setattr(RemoteFiles, "read", lambda self, name: pytest.fail(f"{name} is fetched again"))
    assert data_folder(f"file://{there}") == fetched
    monkeypatch.setenv("KDTRAIN_DATA", f"file://{there}")
    assert data_folder(None) == fetched
    with pytest.raises(UserError, match=r"^--data: must name a folder or a URL, got nothing$"):
        data_folder("")


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "tar.xz"])
def test_an_archive_comes_unpacked(kind: str, there: Path, tmp_path: Path) -> None:
    file = tmp_path / f"data.{kind}"
    with tarfile.open(file, f"w:{kind.partition('.')[2]}") as archive:
        archive.add(there, ".")
    assert content(data_folder(f"file://{file}")) == content(there)


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [
        ("../outside.jpg", tarfile.REGTYPE, "files must be inside the folder"),
        ("/outside.jpg", tarfile.REGTYPE, "files must be inside the folder"),
        ("link.jpg", tarfile.SYMTYPE, "link or device link.jpg in file://"),
        ("link.jpg", tarfile.LNKTYPE, "link or device link.jpg in file://"),
    ],
)
def test_an_archive_writes_nothing_but_files_and_those_inside(
    name: str, kind: bytes, said: str, tmp_path: Path
) -> None:
    file = tmp_path / "data.tar"
    with tarfile.open(file, "w") as archive:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, "/etc/hostname" if kind != tarfile.REGTYPE else ""
        archive.addfile(member)
    with pytest.raises(UserError, match=said):
        data_folder(f"file://{file}")
    assert not list(tmp_path.rglob("*.jpg"))


def test_what_was_cut_off_is_fetched_anew(there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = RemoteFiles.read

    def cut(self: RemoteFiles, name: str) -> bytes | None:
        if name.endswith("1.jpg"):
            raise KeyboardInterrupt
        return read(self, name)

    monkeypatch.setattr(RemoteFiles, "read", cut)
    with pytest.raises(KeyboardInterrupt):
        data_folder(f"file://{there}")
    monkeypatch.setattr(RemoteFiles, "read", read)
    assert content(data_folder(f"file://{there}")) == content(there)


def test_what_is_damaged_there_is_a_sentence_and_leaves_nothing_to_train_on(there: Path) -> None:
    sums = [f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in content(there).items()]
    (there / "SHA256SUMS").write_text("".join(sums))
    (there / "birds/train/a/1.jpg").write_bytes(b"x" * len("birds/train/a/1.jpg"))
    with pytest.raises(
        UserError, match=r"--data: birds/train/a/1.jpg of file://.* must match the digest in SHA256SUMS"
    ):
        data_folder(f"file://{there}")
    (there / "birds/train/a/1.jpg").write_bytes(b"birds/train/a/1.jpg")
    assert content(data_folder(f"file://{there}")) == content(there)


@pytest.mark.parametrize(
    ("name", "said"),
    [("nothing", "holds no file"), ("nothing.tar", "holds no file"), ("text.tar", "cannot be unpacked")],
)
def test_nothing_there_is_a_sentence(name: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "text.tar").write_bytes(b"text")
    with pytest.raises(UserError, match=said):
        data_folder(f"file://{tmp_path}/{name}")


@pytest.mark.parametrize("kind", ["gz", "xz"])
def test_a_flipped_bit_of_an_archive_is_a_sentence_or_changes_nothing(kind: str, there: Path, tmp_path: Path) -> None:
    file = tmp_path / f"data.tar.{kind}"
    with tarfile.open(file, f"w:{kind}") as archive:
        archive.add(there, ".")
    whole = file.read_bytes()
    refused = 0
    for place in range(0, len(whole), 3):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        (other := tmp_path / f"{place}.tar.{kind}").write_bytes(damaged)
        try:
            assert content(data_folder(f"file://{other}")) == content(there)
        except UserError:
            refused += 1
    assert refused > 0.8 * len(range(0, len(whole), 3))
    file.write_bytes(whole[:-5])
    with pytest.raises(UserError, match="cannot be unpacked"):
        data_folder(f"file://{file}")


@pytest.mark.parametrize("sums", [b"\xff\xfe\n", b"one\n", b"a" * 64 + b"\n", b"x" * 100_000])
def test_digests_that_cannot_be_read_are_named_with_their_line(sums: bytes, there: Path) -> None:
    (there / "SHA256SUMS").write_bytes(b"\n" + sums)
    with pytest.raises(UserError, match=r"SHA256SUMS:2: must be a SHA-256 digest") as caught:
        data_folder(f"file://{there}")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "url",
    [
        "ftp://127.0.0.1:9/x",
        "http://127.0.0.1:9/x",
        "nosuch://a/b",
        "github://a",
        "s3://[::1",
        "file:///a\0b",
        "file:///\udcff",
    ],
)
def test_a_url_that_cannot_be_reached_is_a_sentence(url: str) -> None:
    with pytest.raises(UserError, match="--data: "):
        data_folder(url)


@pytest.mark.parametrize(
    "url",
    [
        "s3://KEY:SECRET@bucket/data", "s3://KEY:SE/CRET@bucket/data", "gs://:SECRET@bucket/data",
        "s3://bucket/data?endpoint_override=http://KEY:SECRET@host", "abfs://bucket/data?client_secret=SECRET",
    ],
)  # fmt: skip
def test_a_secret_in_a_url_is_refused_and_not_shown(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDTRAIN_DATA", url)
    for read in (lambda: data_folder(url), lambda: named_data(None), lambda: results_folder(url)):
        with pytest.raises(UserError, match="environment") as caught:
            read()
        assert "CRET@" not in str(caught.value)
        assert "=SECRET" not in str(caught.value)
    with pytest.raises(UserError) as caught:
        raise UserError(f"a.yaml:1: {url.partition('?')[0]} is wrong")
    assert "CRET@" not in str(caught.value)
