"""Decoding of image files: RGB, upright as EXIF says, transparent pixels on a background."""

import stat
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from kdtrain.errors import UserError

EXTENSIONS = (
    ".apng", ".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm",
    ".tga", ".tif", ".tiff", ".webp",
)  # fmt: skip
"""The endings of image files, in lower case. Of an animation the first frame is taken."""
DECODING = 2
"""Raised when a change of this module alters pixels, so that a node's cache does not mix old and new ones."""

Colour = tuple[int, int, int]
WHITE: Colour = (255, 255, 255)

UNREADABLE = (
    UnidentifiedImageError, OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error,
)  # fmt: skip
"""What PIL's plugins raise for damaged files."""
BIT_DEPTH_AT = 24
"""The place of a PNG file's bits per channel."""


def decode(file: Path, background: Colour) -> Image.Image:
    """Return an image file's pixels, upright and without transparency, RGB; see `open_image` for errors."""
    with open_image(file) as image:
        image.load()
        # an EXIF block that cannot be read is as none, as it is for image viewers
        with suppress(*UNREADABLE):
            ImageOps.exif_transpose(image, in_place=True)
        _scale_transparent_grey(image, file)
        return composite(image, background)


def composite(image: Image.Image, background: Colour) -> Image.Image:
    """Return an image as RGB, with its transparent pixels composited on the background."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    pixels = image.convert("RGBA")
    opaque = Image.new("RGB", pixels.size, background)
    opaque.paste(pixels, mask=pixels)
    return opaque


@contextmanager
def open_image(file: Path) -> Iterator[Image.Image]:
    """Open an image file.

    Raises:
        UserError: The file is damaged or cannot be read, is too large, or has values that PIL would cut off at 255.
    """
    try:
        if not stat.S_ISREG(file.stat().st_mode):  # to open a pipe would wait for its writer
            raise UserError(f"{file}: is not a file")
        with Image.open(file) as image:
            if image.mode == "F" or image.mode.startswith("I"):  # float32; int32, I;16, I;16B
                raise UserError(
                    f"{file}: has grey values of more than 8 bits (PIL's mode {image.mode}), which PIL would cut off"
                    " at 255; save it with 8 bits per channel"
                )
            yield image
    except Image.DecompressionBombError as error:
        raise UserError(f"{file}: has too many pixels to be decoded safely ({error}); make it smaller") from None
    except UNREADABLE as error:
        raise UserError(f"{file}: is not a whole image ({error})") from None


def _scale_transparent_grey(image: Image.Image, file: Path) -> None:
    """Correct the transparent colour of a PNG that has not 8 bits per channel.

    PIL gives the pixels 8 bits, but leaves the colour as it stands in the file, so that no pixel would equal it.
    """
    colour = image.info.get("transparency")
    if image.format != "PNG" or image.mode not in ("L", "RGB") or colour is None:
        return
    with file.open("rb") as content:
        content.seek(BIT_DEPTH_AT)
        bits = content.read(1)[0]
    if bits == 16:
        raise UserError(f"{file}: has a transparent colour of 16 bits per channel; save it with an alpha channel")
    if bits < 8 and colour < 1 << bits:
        image.info["transparency"] = colour * 255 // ((1 << bits) - 1)
