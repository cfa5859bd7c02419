"""Decoding: an image looks as its owner sees it. The numbers are computed by hand."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from made_up_data import paint
from PIL import Image, features

from kdtrain.data.decoding import EXTENSIONS, WHITE, Colour, composite, decode
from kdtrain.data.views import pixels_of, resize_and_crop
from kdtrain.errors import UserError

Pixel = tuple[int, ...]


def decoded(file: Path, background: Colour = WHITE) -> list[Pixel]:
    """Return the colours of a file's pixels, row by row."""
    image = decode(file, background)
    assert image.mode == "RGB"
    return [tuple(colour) for colour in np.array(image).reshape(-1, 3).tolist()]


def saved(file: Path, mode: str, pixels: list[int] | list[Pixel], **options: object) -> Path:
    """Write an image of one row; return its file."""
    image = Image.new(mode, (len(pixels), 1))
    image.putdata(pixels)
    if mode == "P":
        image.putpalette([200, 100, 0, 4, 5, 6])
    image.save(file, **options)
    return file


def png(file: Path, bits: int, colour_type: int, row: bytes, transparent: bytes) -> Path:
    """Write a PNG of two pixels by the specification, as Pillow writes 8 bits per channel only."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 2, 1, bits, colour_type, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"tRNS", transparent), (b"IDAT", zlib.compress(b"\0" + row)), (b"IEND", b"")]
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in chunks))
    return file


BEIGE: Colour = (10, 20, 30)
HALF = {WHITE: (227, 177, 127), BEIGE: (105, 60, 15)}
"""(200, 100, 0) at alpha 128: (200 * 128 + 255 * 127) / 255 = 227.4 and so on."""


@pytest.mark.parametrize("background", [WHITE, BEIGE])
def test_transparent_pixels_show_the_background_in_proportion(background: Colour, tmp_path: Path) -> None:
    colours = [(200, 100, 0, 0), (200, 100, 0, 128), (200, 100, 0, 255)]
    for name in ("a.png", "a.webp", "a.tif", "a.tga"):
        file = saved(tmp_path / name, "RGBA", colours, **({"lossless": True, "exact": True} if "webp" in name else {}))
        assert decoded(file, background) == [background, HALF[background], (200, 100, 0)]


def test_grey_and_palette_images_take_the_same_path(tmp_path: Path) -> None:
    # 7 at alpha 128 on white: (7 * 128 + 255 * 127) / 255 = 130.5
    assert decoded(saved(tmp_path / "la.png", "LA", [(7, 0), (7, 128), (7, 255)])) == [WHITE, (131,) * 3, (7,) * 3]
    index = saved(tmp_path / "index.png", "P", [0, 1], transparency=0)
    assert decoded(index) == [WHITE, (4, 5, 6)]
    assert decoded(index, BEIGE) == [BEIGE, (4, 5, 6)]
    assert decoded(saved(tmp_path / "bytes.png", "P", [0, 1], transparency=bytes([128, 0]))) == [HALF[WHITE], WHITE]
    assert decoded(saved(tmp_path / "a.gif", "P", [0, 1], transparency=1)) == [(200, 100, 0), WHITE]
    with_alpha = Image.new("PA", (1, 1), (1, 128))
    with_alpha.putpalette([0, 0, 0, 200, 100, 0])
    assert composite(with_alpha, WHITE).getpixel((0, 0)) == HALF[WHITE]


def test_one_colour_of_a_grey_or_rgb_image_may_be_transparent(tmp_path: Path) -> None:
    assert decoded(saved(tmp_path / "l.png", "L", [7, 8], transparency=7)) == [WHITE, (8, 8, 8)]
    rgb = saved(tmp_path / "rgb.png", "RGB", [(1, 2, 3), (1, 2, 4)], transparency=(1, 2, 3))
    assert decoded(rgb) == [WHITE, (1, 2, 4)]
    assert decoded(saved(tmp_path / "one.png", "1", [0, 1], transparency=0), BEIGE) == [BEIGE, WHITE]


@pytest.mark.parametrize(("bits", "step"), [(2, 85), (4, 17)])
def test_the_transparent_grey_of_a_png_of_few_bits_is_found(bits: int, step: int, tmp_path: Path) -> None:
    """Optimised icons are often such files; Pillow compares a value of 0 to 3 with pixels of 0 to 255."""
    row = bytes([(1 << (8 - bits)) | (2 << (8 - 2 * bits))])
    file = png(tmp_path / "a.png", bits, 0, row, transparent=struct.pack(">H", 2))
    assert decoded(file) == [(step,) * 3, WHITE]


def test_a_transparent_colour_of_16_bits_is_refused_as_pillow_does_not_find_it(tmp_path: Path) -> None:
    colours = struct.pack(">6H", 1000, 2000, 3000, 65535, 0, 0)
    file = png(tmp_path / "a.png", 16, 2, colours, transparent=colours[:6])
    with pytest.raises(UserError, match=r"a\.png: has a transparent colour of 16 bits"):
        decode(file, WHITE)


def test_images_without_transparency_keep_their_colours(tmp_path: Path) -> None:
    assert decoded(saved(tmp_path / "a.ppm", "RGB", [(1, 2, 3)])) == [(1, 2, 3)]
    assert decoded(saved(tmp_path / "a.pgm", "L", [7])) == [(7, 7, 7)]
    assert decoded(saved(tmp_path / "a.pbm", "1", [0, 1])) == [(0, 0, 0), WHITE]
    assert decoded(saved(tmp_path / "a.bmp", "P", [1, 0])) == [(4, 5, 6), (200, 100, 0)]
    # key 64 leaves 191 of the ink's complement: 191 - 128 * 191 / 255 = 95.1
    assert decoded(saved(tmp_path / "a.tif", "CMYK", [(0, 128, 255, 64)])) == [(191, 95, 0)]


def test_icons_that_differ_in_transparency_alone_are_different_images(tmp_path: Path) -> None:
    """Without a background, 64 black drawings on transparent ground are 64 black images."""
    views = set()
    for number in range(8):
        alpha = np.zeros((16, 16, 4), np.uint8)
        alpha[number, :, 3] = 255
        Image.fromarray(alpha).save(tmp_path / f"{number}.png")
        views.add(decode(tmp_path / f"{number}.png", WHITE).tobytes())
    assert len(views) == 8


CORNERS = np.array([[10, 20, 30], [40, 50, 60]], np.uint8)
UPRIGHT = {
    1: [[10, 20, 30], [40, 50, 60]],
    2: [[30, 20, 10], [60, 50, 40]],
    3: [[60, 50, 40], [30, 20, 10]],
    4: [[40, 50, 60], [10, 20, 30]],
    5: [[10, 40], [20, 50], [30, 60]],
    6: [[40, 10], [50, 20], [60, 30]],
    7: [[60, 30], [50, 20], [40, 10]],
    8: [[30, 60], [20, 50], [10, 40]],
}
"""What the eight orientations make of CORNERS: 6, for example, has the file's first row at the right-hand side."""


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("ending", ["png", "tif", "webp"])
def test_the_orientation_of_exif_is_applied(orientation: int, ending: str, tmp_path: Path) -> None:
    file = tmp_path / f"a.{ending}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if ending == "webp" else {}
    Image.fromarray(np.stack([CORNERS] * 3, axis=-1)).save(file, exif=exif, **options)
    assert np.array(decode(file, WHITE))[..., 0].tolist() == UPRIGHT[orientation]


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_a_photograph_is_turned_and_else_has_the_pixels_of_the_file(orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.open(paint(tmp_path / "noise.png")).save(tmp_path / "a.jpg", exif=exif)
    with Image.open(tmp_path / "a.jpg") as image:
        stored = np.array(image)
    turned = {1: stored, 2: stored[:, ::-1], 3: stored[::-1, ::-1], 4: stored[::-1], 5: stored.swapaxes(0, 1),
              6: np.rot90(stored, -1), 7: stored[::-1, ::-1].swapaxes(0, 1), 8: np.rot90(stored)}  # fmt: skip
    assert np.array_equal(np.array(decode(tmp_path / "a.jpg", WHITE)), turned[orientation])


def test_transparent_images_are_turned_too(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    saved(tmp_path / "a.png", "RGBA", [(9, 9, 9, 255), (9, 9, 9, 0)], exif=exif)
    image = decode(tmp_path / "a.png", WHITE)
    assert image.size == (1, 2)
    assert np.array(image)[:, 0].tolist() == [[9, 9, 9], [255, 255, 255]]


def test_an_exif_block_that_cannot_be_read_changes_nothing(tmp_path: Path) -> None:
    file = paint(tmp_path / "a.png")
    expected = np.array(Image.open(file))
    Image.fromarray(expected).save(file, exif=b"Exif\0\0no such block")
    assert np.array_equal(np.array(decode(file, WHITE)), expected)


def test_the_first_frame_of_an_animation_is_taken(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (2, 2), colour) for colour in ((200, 100, 0), (0, 0, 200))]
    for name in ("a.gif", "a.png", "a.webp", "a.tif"):
        options = {"lossless": True} if name == "a.webp" else {}
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **options)
        assert set(decoded(tmp_path / name)) == {(200, 100, 0)}


@pytest.mark.parametrize("ending", EXTENSIONS)
def test_every_listed_ending_can_be_decoded(ending: str, tmp_path: Path) -> None:
    if ending == ".avif" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    mode = {".pbm": "1", ".pgm": "L"}.get(ending, "RGB")
    Image.new(mode, (4, 3), 1).save(tmp_path / f"a{ending}")
    assert decode(tmp_path / f"a{ending}", WHITE).size == (4, 3)


def test_an_image_of_one_pixel_has_a_view(tmp_path: Path) -> None:
    view = resize_and_crop(9, 8)
    image = decode(saved(tmp_path / "a.png", "RGB", [(1, 2, 3)]), WHITE)
    pixels = pixels_of(view.transform(view.pre_transform(image)))
    assert torch.equal(pixels, torch.tensor([1, 2, 3], dtype=torch.uint8).view(3, 1, 1).expand(3, 8, 8))


def test_a_file_of_too_many_pixels_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.pgm").write_bytes(b"P5 30000 30000 255\n")
    with pytest.raises(UserError, match=r"a\.pgm: has too many pixels to be decoded safely"):
        decode(tmp_path / "a.pgm", WHITE)


@pytest.mark.data
def test_real_photographs_without_exif_have_the_pixels_that_pillow_reads(real_data: Path) -> None:
    files = sorted((real_data / "hymenoptera_data").rglob("*.jpg"))[::10]
    assert files
    for file in files:
        with Image.open(file) as image:
            assert decode(file, WHITE).tobytes() == image.convert("RGB").tobytes()
