"""Reading ahead: everything is checked before a training, and memory holds what fits."""

import os
import pickle
import shutil
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_up_data import cub200, paint
from PIL import Image

from kdtrain.data.cub200 import Cub200
from kdtrain.data.decoding import WHITE, Colour
from kdtrain.data.file_contents import FileContents
from kdtrain.data.hymenoptera import Hymenoptera
from kdtrain.data.image_files import FileSource
from kdtrain.data.views import unchanged
from kdtrain.errors import UserError
from kdtrain.storage.cache import Cache

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
    monkeypatch.setattr("kdtrain.data.image_files.MAX_MEMORY_BYTES", 3 * IMAGE_BYTES + 5)
    source = FileSource(files, unchanged)
    source.check()
    assert sorted(source.decoded) == [0, 1, 2]
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
    monkeypatch.setattr("kdtrain.data.image_files.MAX_MEMORY_BYTES", 0)
    never = FileSource(files, unchanged)
    for index in range(len(files)):
        assert kept.image(index, unchanged).tobytes() == never.image(index, unchanged).tobytes()
    assert (len(kept.decoded), len(never.decoded)) == (12, 0)


def test_only_the_given_pre_transform_is_kept(files: list[Path]) -> None:
    source = FileSource(files, unchanged)
    turned = source.image(0, lambda image: image.rotate(90, expand=True))
    assert turned.size == (30, 24)
    assert source.decoded == {}
    assert source.image(0, unchanged).size == (24, 30)


def test_a_file_that_vanished_is_named(files: list[Path]) -> None:
    files[3].unlink()
    with pytest.raises(UserError, match=r"03\.png: is not a whole image .*No such file"):
        FileSource(files, unchanged).check()


HEADERS = (b"twelve 3 255", b"3 3 0", b"3 3 99999", b"99999999999 3 255")


@pytest.mark.parametrize("content", [b"", *(b"P6 " + header + b"\n" + bytes(27) for header in HEADERS)])
def test_an_empty_file_and_a_header_that_makes_no_sense_are_damage(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "a.ppm"
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.ppm: is not a whole image"):
        FileSource([file], unchanged).check()


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("error", [ValueError, EOFError, struct.error, zlib.error])
def test_what_plugins_raise_for_damaged_files_is_a_sentence(
    error: type[Exception], full: bool, files: list[Path], monkeypatch
) -> None:
    def broken(*_: object) -> None:
        raise error("broken")

    monkeypatch.setattr(Image, "open", broken)
    source = FileSource(files, unchanged)
    source.full = full
    with pytest.raises(UserError, match=r"00\.png: is not a whole image \(broken\)"):
        source.check()


def test_an_error_of_a_view_is_not_blamed_on_the_file(files: list[Path]) -> None:
    def broken(image: Image.Image) -> Image.Image:
        raise ValueError("a defect of the view")

    with pytest.raises(ValueError, match="a defect of the view"):
        FileSource(files, broken).check()


DEEP = {
    "a.png": np.full((24, 30), 1000, np.uint16),
    "a.tif": np.full((24, 30), 1000, np.uint16),
    "a.pgm": np.full((24, 30), 1000, np.uint16),
    "b.tif": np.full((24, 30), 1000, np.int32),
    "c.tif": np.full((24, 30), 0.5, np.float32),
}


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("name", DEEP)
def test_grey_values_of_more_than_8_bits_are_refused_by_the_files_name(name: str, full: bool, tmp_path: Path) -> None:
    """PIL would cut them off at 255: another picture, without a word."""
    file = tmp_path / name
    Image.fromarray(DEEP[name]).save(file)
    source = FileSource([file], unchanged)
    source.full = full
    with pytest.raises(UserError) as caught:
        source.check()
    (problem,) = caught.value.problems
    assert problem.startswith(f"{file}: has grey values of more than 8 bits (PIL's mode ")
    assert problem.endswith("; save it with 8 bits per channel")


def source_of(files: list[Path], background: Colour = WHITE) -> FileSource:
    return FileSource(files, unchanged, background, FileContents(files[0].parent, files))


def test_decoded_images_are_shared_by_the_node_and_equal_those_of_a_process(tmp_path: Path) -> None:
    """Another process finds them decoded: once their content is known, its own files could be gone."""
    files = [paint(tmp_path / f"{number}.png", (20 + number, 30)) for number in range(70)]
    alone, first, second = (source_of(files) for _ in range(3))
    cache = Cache(tmp_path / "cache", 1 << 20)
    first.share(cache)
    alone.check()
    assert second.digests() == first.digests()
    for file in files:
        file.unlink()
    second.share(cache)
    second.check()
    for number in range(70):
        expected = np.array(alone.image(number, unchanged))
        for source in (first, second):
            assert np.array_equal(np.array(source.image(number, unchanged)), expected)
            images_in_memory = source.all_images(unchanged)
            assert images_in_memory is not None
            assert np.array_equal(images_in_memory[number].permute(1, 2, 0).numpy(), expected)


@pytest.mark.data
@pytest.mark.parametrize(
    "config",
    [Hymenoptera(name="hymenoptera", limit_per_class=20), Cub200(name="cub200", limit_per_class=1)],
    ids=["crop and flip", "AutoAugment"],
)
def test_views_of_shared_photographs_are_those_of_their_files(config: Any, real_data: Path, tmp_path: Path) -> None:
    plain, first, second = (config.load(real_data) for _ in range(3))
    for data in (first, second):
        assert data.share(Cache(tmp_path / "cache", 1 << 30)) is None
    every = torch.arange(len(plain.train))
    for data in (first, second):
        assert data.train.images.source.shared
        for epoch in (0, 1):
            views = (each.train.images.train_view(every, 3, epoch) for each in (plain, data))
            assert torch.equal(*views)
        assert torch.equal(plain.train.images.eval_view(every), data.train.images.eval_view(every))


def test_a_changed_file_is_decoded_again_and_a_copy_is_not(tmp_path: Path) -> None:
    file = paint(tmp_path / "a.bmp")
    cache = Cache(tmp_path / "cache", 1 << 20)
    source_of([file]).share(cache)
    copy = source_of([Path(shutil.copy(file, tmp_path / "b.bmp"))])
    copy.share(cache)
    assert len([path for path in cache.root.iterdir() if path.is_dir()]) == 1
    times = file.stat().st_atime_ns, file.stat().st_mtime_ns
    Image.new("RGB", (24, 30), (1, 2, 3)).save(file)  # as many bytes as before
    os.utime(file, ns=times)
    source = source_of([file])
    source.share(cache)
    assert source.image(0, unchanged).getpixel((0, 0)) == (1, 2, 3)
    assert copy.image(0, unchanged).getpixel((0, 0)) != (1, 2, 3)


def test_shared_images_of_another_background_are_others(tmp_path: Path) -> None:
    Image.new("RGBA", (2, 2)).save(tmp_path / "a.png")
    cache = Cache(tmp_path / "cache", 1 << 20)
    for background in (WHITE, (1, 2, 3)):
        source = source_of([tmp_path / "a.png"], background)
        source.share(cache)
        assert source.shared
        assert source.image(0, unchanged).getpixel((0, 0)) == background
        again = pickle.loads(pickle.dumps(FileSource([tmp_path / "a.png"], unchanged, background)))
        assert again.image(0, unchanged).getpixel((0, 0)) == background  # in a loader process


def test_a_damaged_file_is_named_though_images_are_shared(tmp_path: Path) -> None:
    files = [paint(tmp_path / f"{number}.png") for number in range(20)]
    files[18].write_bytes(files[18].read_bytes()[:100])
    with pytest.raises(UserError, match=r"18\.png: is not a whole image"):
        source_of(files).share(Cache(tmp_path / "cache", 1 << 20))


def test_without_room_each_process_keeps_its_own(tmp_path: Path) -> None:
    files = [paint(tmp_path / f"{number}.png") for number in range(3)]
    source = source_of(files)
    reason = "no room within 100 bytes (resources.cache_bytes)"
    assert source.share(Cache(tmp_path / "cache", 100)) == reason
    source.check()
    assert source.share(Cache(tmp_path / "cache", 1 << 20)) == reason  # the process has its own by now
    assert not source.shared
    assert source.image(2, unchanged).size == (24, 30)
