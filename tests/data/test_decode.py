"""Pictures to pixels: modes, sizes and bombs."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image

from poisonkit.data.decode import stack
from poisonkit.errors import DataError

RED = (255, 0, 0)


def saved(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "pixel"),
    [
        (saved(Image.new("RGB", (2, 2), RED)), RED),
        (saved(Image.new("RGBA", (2, 2), (*RED, 9))), RED),
        (saved(Image.new("RGB", (2, 2), RED).quantize(2)), RED),
        (saved(Image.new("P", (2, 2)), transparency=b"\x07"), (0, 0, 0)),
        (saved(Image.new("L", (2, 2), 7)), (7, 7, 7)),
        (saved(Image.new("RGB", (2, 2), RED), "PPM"), RED),
        (saved(Image.new("L", (2, 2), 7), "PPM"), (7, 7, 7)),
        (saved(Image.new("CMYK", (8, 8), (0, 0, 0, 0)), "JPEG"), (255, 255, 255)),
    ],
)
def test_every_mode_becomes_rgb(content: bytes, pixel: tuple[int, int, int]) -> None:
    assert stack([("one", content)], 1)[0, :, 0, 0].tolist() == list(pixel)


@pytest.mark.parametrize("image", [Image.new("I;16", (2, 2)), Image.new("LA", (2, 2)), Image.new("1", (2, 2))])
def test_other_modes_are_refused(image: Image.Image) -> None:
    with pytest.raises(DataError, match="one must be an 8-bit grey or colour picture"):
        stack([("one", saved(image))], 1)


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "EPS"])
def test_other_decoders_are_not_tried(kind: str) -> None:
    with pytest.raises(DataError, match="one must be a whole PNG, JPEG or PPM picture"):
        stack([("one", saved(Image.new("RGB", (2, 2)), kind))], 1)


def png_header(w: int, h: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", w, h, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))


@pytest.mark.parametrize(("w", "h"), [(5000, 5000), (10_000, 10_000), (100_000, 100_000)])
def test_a_picture_of_too_many_pixels_is_refused(w: int, h: int) -> None:
    body = b"IDAT" + zlib.compress(b"\0" * 100)
    content = png_header(w, h) + struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    with pytest.raises(DataError, match="one must be "):
        stack([("one", content)], 1)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "PPM"])
def test_no_truncation_gives_other_pixels(encode: Callable[..., bytes], kind: str) -> None:
    content = encode(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8), kind)
    whole = stack([("one", content)], 1)
    refused = 0
    for length in range(len(content)):
        try:
            assert torch.equal(stack([("one", content[:length])], 1), whole), length
        except DataError:
            refused += 1
    assert refused >= len(content) - 20  # only marks and checksums of the end may be missing


def test_one_picture_per_label(encode: Callable[..., bytes]) -> None:
    pictures = [("one", encode(np.zeros((2, 2), np.uint8)))] * 2
    for n in (1, 3):
        with pytest.raises(DataError, match="one per label"):
            stack(pictures, n)
    with pytest.raises(DataError, match="one per label"):
        stack([], 2)


def test_two_encodings_agree(encode: Callable[..., bytes]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 9, 3), dtype=np.uint8)
    images = stack([("png", encode(pixels)), ("ppm", encode(pixels, "PPM"))], 2)
    assert images.shape == (2, 3, 16, 9)
    assert (images.permute(0, 2, 3, 1).numpy() == pixels).all()
