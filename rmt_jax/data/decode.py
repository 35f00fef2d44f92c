"""Encoded pictures to 8-bit RGB."""

import io

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

# What data sets are made of. Pillow knows more, and for some (EPS) it would start other programs.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")

_JPEG_START = b"\xff\xd8\xff"

# What Pillow raises for damaged files, depending on the format and on where the damage is.
DAMAGE = (OSError, SyntaxError, ValueError, EOFError, IndexError, OverflowError, Image.DecompressionBombError)


class CorruptImageError(ValueError):
    """A record whose bytes are not a readable picture; the message names the record."""


def decode(data: bytes, record_id: str) -> Image.Image:
    """The picture in `data` (JPEG, PNG, WebP, ...) as 8-bit RGB, whatever its file name says.

    Grey and palette pictures are expanded, CMYK is converted, transparency is dropped, 16-bit grey keeps its high byte.
    An EXIF orientation is ignored, as by torchvision and timm: pixels stay as they are stored.

    Raises:
        CorruptImageError: the bytes are damaged, cut off, or not a picture.
    """
    image = _decode_jpeg(data) if data.startswith(_JPEG_START) else None
    return image or _decode_any(data, record_id)


def picture_size(file: io.BytesIO | io.BufferedReader, record_id: str) -> tuple[int, int]:
    """Height and width of an encoded picture, by its header alone; the orientation is that of `decode`.

    Raises:
        CorruptImageError: the header is damaged, or that of no picture.
    """
    try:
        with Image.open(file, formats=_FORMATS) as image:
            return image.height, image.width
    except DAMAGE as error:
        raise CorruptImageError(f"cannot read the size of the picture of record {record_id!r}: {error}") from error


def _decode_jpeg(data: bytes) -> Image.Image | None:
    """A JPEG by libjpeg-turbo itself: the same pixels as Pillow's, a third faster. None for what is out of order."""
    try:
        height, width, color_space, _ = simplejpeg.decode_jpeg_header(data)
        if color_space not in ("YCbCr", "Gray", "RGB") or height * width > (Image.MAX_IMAGE_PIXELS or 0):
            return None
        return Image.fromarray(simplejpeg.decode_jpeg(data, "RGB"))
    except ValueError:  # damaged, or only odd: Pillow decides, and explains
        return None


def _decode_any(data: bytes, record_id: str) -> Image.Image:
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=_FORMATS)
        image.load()
    except DAMAGE as error:
        reason = f"it is none of {', '.join(_FORMATS)}" if isinstance(error, UnidentifiedImageError) else error
        raise CorruptImageError(
            f"cannot decode the picture of record {record_id!r} ({len(data)} bytes): {reason}"
        ) from error
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):  # 16 bits: Pillow's own conversion clips at 255 and would leave it nearly white
        image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # the direct way to RGB warns about the transparency that it drops
    return image.convert("RGB")
