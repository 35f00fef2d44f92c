"""Label maps of every kind that is right, and what is said about those that are not."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from rmt_jax.data import CorruptImageError
from rmt_jax.data.interface import SegmentationExample
from rmt_jax.data.segmentation import LabelMapError
from rmt_jax.data.segmentation.labels import decode_label_map, read_example
from tests.data.segmentation.standin import encode

LABELS = np.array([[0, 1, 2], [3, 150, 255]], np.uint8)
PICTURE = np.zeros((2, 3, 3), np.uint8)


def indexed(labels: np.ndarray) -> bytes:
    """A PNG of colours, whose indices are the labels."""
    image, data = Image.fromarray(labels).convert("P"), io.BytesIO()
    image.putpalette(np.random.default_rng(0).permutation(768).astype(np.uint8).tobytes())
    image.save(data, "PNG")
    return data.getvalue()


def test_grey_and_indexed_colours_are_the_same_labels() -> None:
    for data in (encode(LABELS), indexed(LABELS)):
        found = decode_label_map(data, "x.png")
        np.testing.assert_array_equal(found, LABELS)
        assert found.dtype == np.uint8


def test_few_indexed_colours_and_one_bit() -> None:
    few = LABELS[:, :2] % 4
    data = io.BytesIO()
    image = Image.fromarray(few).convert("P")
    image.save(data, "PNG", bits=2)
    np.testing.assert_array_equal(decode_label_map(data.getvalue(), "x.png"), few)
    np.testing.assert_array_equal(decode_label_map(encode(few > 0, mode="1"), "x.png"), few > 0)


def grey_of_two_bits() -> bytes:
    """A PNG of four pixels 0, 1, 2, 3, which Pillow reads as 0, 85, 170, 255 and cannot write."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 4, 1, 2, 0, 0, 0, 0)
    pixels = zlib.compress(bytes([0, 0b00011011]))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (encode(PICTURE), "is a PNG in 8-bit RGB: expected 8-bit grey or indexed colours"),
        (encode(LABELS, mode="LA"), "is a PNG in 8-bit grey with transparency"),
        (encode(PICTURE, mode="RGBA"), "is a PNG in 8-bit RGBA"),
        (encode(LABELS.astype(np.uint16)), "is a PNG in 16-bit grey"),
        (grey_of_two_bits(), "is a PNG in 2-bit grey"),
        (encode(LABELS, "JPEG"), "is a JPEG: expected a PNG, which keeps every label"),
    ],
)
def test_maps_of_another_kind_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(LabelMapError, match=f"label map of 'x.png' {message}"):
        decode_label_map(data, "x.png")


@pytest.mark.parametrize("data", [b"", b"nothing", encode(LABELS)[:12], encode(np.tile(LABELS, (50, 50)))[:-60]])
def test_damaged_maps_count_as_unreadable(data: bytes) -> None:
    with pytest.raises(CorruptImageError, match=r"label map of 'x\.png'"):
        decode_label_map(data, "x.png")


def read(labels: np.ndarray, num_classes: int, *, reduced: bool, picture: np.ndarray = PICTURE) -> np.ndarray:
    image, found = read_example(
        SegmentationExample(encode(picture), encode(labels), "x.png"), num_classes, reduced=reduced
    )
    np.testing.assert_array_equal(image, picture)
    return found


def test_labels_in_range() -> None:
    np.testing.assert_array_equal(read(LABELS, 151, reduced=False), LABELS)
    np.testing.assert_array_equal(read(LABELS, 150, reduced=True), [[255, 0, 1], [2, 149, 255]])


def test_labels_out_of_range_say_what_to_set() -> None:
    with pytest.raises(
        LabelMapError,
        match=r"label map of 'x.png' holds label 150: expected 0 \.\. 149, or 255 for pixels to ignore; where 0 is no "
        r"class and 1 \.\. 150 are the classes, set data\.segmentation\.reduce_zero_label=True",
    ):
        read(LABELS, 150, reduced=False)
    with pytest.raises(LabelMapError, match=r"holds label 3: expected 0 \.\. 2.*; 3 is the number of classes that"):
        read(LABELS, 3, reduced=False)
    with pytest.raises(LabelMapError, match=r"holds label 150: expected 0 \.\. 149.*without the 0 that .*reduce_zero"):
        read(LABELS, 149, reduced=True)


def test_sizes_must_agree() -> None:
    with pytest.raises(
        LabelMapError, match=r"'x.png' has 4 x 2 pixels \(width x height\), its label map 3 x 2"
    ) as error:
        read(LABELS, 151, reduced=False, picture=np.zeros((2, 4, 3), np.uint8))
    assert "EXIF" not in str(error.value)
    with pytest.raises(LabelMapError, match=r"2 x 3 pixels .* label map 3 x 2: expected the same\. Was .* EXIF"):
        read(LABELS, 151, reduced=False, picture=np.zeros((3, 2, 3), np.uint8))
