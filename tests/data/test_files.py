"""Reading ahead: everything is checked before a training, and memory holds what fits."""

from pathlib import Path

import pytest
import torch
from made_up_data import cub200, paint

from kdtrain.data.cub200 import Cub200
from kdtrain.data.files import FileSource
from kdtrain.data.views import unchanged
from kdtrain.errors import UserError

IMAGE_BYTES = 3 * 30 * 24


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    return [paint(tmp_path / "birds" / f"{number:02d}.png") for number in range(12)]


def cut(file: Path) -> None:
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])


def test_a_check_reads_all_images_into_memory_and_views_need_no_file_after_it(tmp_path: Path) -> None:
    folder = cub200(tmp_path)
    images, unread = (Cub200(name="cub200", resolution=20).load(tmp_path).train.images for _ in range(2))
    every = torch.arange(len(images))
    expected = unread.train_view(every, 1, 2)
    images.check()
    for file in (folder / "images").rglob("*.png"):
        file.unlink()
    assert torch.equal(images.train_view(every, 1, 2), expected)
    images.check()  # costs nothing: the files are gone


def test_the_first_damaged_file_in_order_is_named(files: list[Path]) -> None:
    cut(files[9])
    cut(files[4])
    source = FileSource(files, unchanged)
    for _ in range(2):  # a second call does not take a failed check for a passed one
        with pytest.raises(UserError) as caught:
            source.check()
        (problem,) = caught.value.problems
        assert problem.startswith(f"{files[4]}: is not a whole image (")


def test_beyond_the_memory_only_headers_are_read(files: list[Path], monkeypatch) -> None:
    monkeypatch.setattr("kdtrain.data.files.MEMORY_BYTES", 3 * IMAGE_BYTES + 5)
    source = FileSource(files, unchanged)
    source.check()
    assert sorted(source.images) == [0, 1, 2]
    assert source.bytes == 3 * IMAGE_BYTES
    again = FileSource(files, unchanged)
    again.full = True
    cut(files[5])
    again.check()  # its header is whole
    files[6].write_bytes(b"no image")
    again.checked = False
    with pytest.raises(UserError, match=r"06\.png: is not a whole image"):
        again.check()


def test_an_image_that_is_not_kept_is_decoded_to_the_same_pixels(files: list[Path], monkeypatch) -> None:
    kept = FileSource(files, unchanged)
    kept.check()
    monkeypatch.setattr("kdtrain.data.files.MEMORY_BYTES", 0)
    never = FileSource(files, unchanged)
    for index in range(len(files)):
        assert kept.image(index, unchanged).tobytes() == never.image(index, unchanged).tobytes()
    assert (len(kept.images), len(never.images)) == (12, 0)


def test_only_the_kept_head_is_kept(files: list[Path]) -> None:
    source = FileSource(files, unchanged)
    turned = source.image(0, lambda image: image.rotate(90, expand=True))
    assert turned.size == (30, 24)
    assert source.images == {}
    assert source.image(0, unchanged).size == (24, 30)


def test_a_file_that_vanished_is_named(files: list[Path]) -> None:
    files[3].unlink()
    with pytest.raises(UserError, match=r"03\.png: is not a whole image .*No such file"):
        FileSource(files, unchanged).check()
