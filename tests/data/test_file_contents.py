"""The content of image files: read once, then recognised by inode, size and times."""

import json
import os
from pathlib import Path

import pytest
from made_up_data import config_of, loaded, paint
from studies import sweep_file

from kdtrain.api.sweeps import opened
from kdtrain.config.recipe import Recipe
from kdtrain.config.sweep import load_sweep
from kdtrain.data import registry
from kdtrain.data.file_contents import FileContents
from kdtrain.errors import UserError
from kdtrain.storage.cache import cache_folder
from kdtrain.trials.identity import trial_id


@pytest.fixture(autouse=True)
def _own_memo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDTRAIN_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def _remember_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdtrain.data.file_contents.SETTLED_NS", -1)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    return [paint(tmp_path / "pets" / name / f"{number}.bmp") for name in ("cat", "hound") for number in range(10)]


def digests(files: list[Path]) -> list[str]:
    return FileContents(files[0].parents[1], files).of(files)


def edit(file: Path) -> None:
    """Change one byte; keep size, modification time and inode. The time of the change alone tells."""
    before = file.stat()
    while file.stat().st_ctime_ns == before.st_ctime_ns:
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        with file.open("r+b") as opened:
            opened.write(content)
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = file.stat()
    assert (after.st_size, after.st_mtime_ns, after.st_ino) == (before.st_size, before.st_mtime_ns, before.st_ino)


def memo_file() -> Path:
    (file,) = (cache_folder() / "contents").iterdir()
    return file


@pytest.mark.usefixtures("_remember_at_once")
def test_an_edited_image_of_the_same_size_and_time_is_another_trial(files: list[Path], tmp_path: Path) -> None:
    recipe = Recipe.model_validate(
        {"data": {"name": "image_folder", "folder": "pets", "resolution": 8, "test_fraction": 0.3},
         "student": {"model": "lenet5_student"}, "method": {"name": "none"}, "epochs": 1, "batch_size": 4,
         "optimizer": {"name": "sgd", "lr": 0.1}, "lr_schedule": {"name": "constant"}}
    )  # fmt: skip
    ids = []
    for change in (lambda: None, lambda: None, lambda: edit(files[3])):
        change()
        registry.load.cache_clear()  # as in another process
        ids.append(trial_id(recipe, tmp_path))
    assert ids[0] == ids[1] != ids[2]


def test_a_second_study_of_a_process_sees_edited_images(files: list[Path], tmp_path: Path) -> None:
    """As in a notebook: a process reads a data set once for each study."""
    data = {"name": "image_folder", "folder": "pets", "resolution": 16, "test_fraction": 0.3}
    config = config_of(**data)
    marks = []
    for name in ("one", "two"):
        sweep = load_sweep(sweep_file(tmp_path, name=name, recipe={"data": data}))
        with opened(sweep, str(tmp_path / "r"), str(tmp_path), "", check_capacity=False) as study:
            marks.append(study.workspace.dataset(config).fingerprint)
        edit(files[3])
    assert marks[0] != marks[1]


def test_an_image_edited_just_after_it_was_read_is_read_again(files: list[Path]) -> None:
    """A file system's clock may not have ticked between the two."""
    known = digests(files)
    for file in files:
        content = file.read_bytes()
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert not set(known) & set(digests(files))


@pytest.mark.usefixtures("_remember_at_once")
def test_a_file_that_did_not_change_is_not_read_again(files: list[Path]) -> None:
    known = digests(files)
    memo = json.loads(memo_file().read_text())
    (stamp,) = memo[str(files[0])]
    memo_file().write_text(json.dumps(memo | {str(files[0]): {stamp: "from memory"}}))
    assert digests(files) == ["from memory", *known[1:]]
    files[0].rename(files[0].with_suffix(".old"))
    files[0].with_suffix(".old").rename(files[0])  # a rename alone may change the time of the change
    files[0].write_bytes(files[0].read_bytes())
    assert digests(files) == known


@pytest.mark.usefixtures("_remember_at_once")
def test_the_same_path_may_lead_to_other_files_on_another_machine(files: list[Path], tmp_path: Path) -> None:
    """Machines may share a cache folder, but not the files: both contents are remembered, none is mixed up."""
    here = digests(files)
    (tmp_path / "pets").rename(tmp_path / "of this machine")
    for file in files:
        paint(file, (31, 24))
    there = digests(files)
    assert not set(here) & set(there)
    size = memo_file().stat().st_mtime_ns
    (tmp_path / "pets").rename(tmp_path / "of another machine")
    (tmp_path / "of this machine").rename(tmp_path / "pets")
    assert digests(files) == here
    assert memo_file().stat().st_mtime_ns == size  # nothing was read


@pytest.mark.usefixtures("_remember_at_once")
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff"])
def test_a_damaged_memo_is_as_none(content: bytes, files: list[Path]) -> None:
    known = digests(files)
    memo_file().write_bytes(content)
    assert digests(files) == known


def test_a_memo_that_cannot_be_written_is_no_error(files: list[Path], tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "no folder").write_text("")
    monkeypatch.setenv("KDTRAIN_CACHE", str(tmp_path / "no folder"))
    assert len(set(digests(files))) == 20


def test_equal_contents_have_equal_digests_and_names_do_not_count(files: list[Path], tmp_path: Path) -> None:
    files[0].with_name("copy.bmp").write_bytes(files[0].read_bytes())
    assert digests([files[0], files[0].with_name("copy.bmp")])[0] == digests(files)[0]
    mark = loaded(tmp_path, "image_folder", folder="pets", test_fraction=0.3).fingerprint
    (tmp_path / "pets").rename(tmp_path / "animals")
    assert loaded(tmp_path, "image_folder", folder="animals", test_fraction=0.3).fingerprint == mark


def test_what_is_no_file_or_is_gone_is_named(files: list[Path]) -> None:
    os.mkfifo(files[0].with_name("pipe.png"))
    with pytest.raises(UserError, match=r"pipe\.png: is not a file"):
        digests([files[0].with_name("pipe.png")])
    files[1].unlink()
    with pytest.raises(UserError, match=r"cat/1\.bmp: cannot be read \(No such file"):
        digests(files)
