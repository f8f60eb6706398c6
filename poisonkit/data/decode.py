"""Encoded pictures (PNG, JPEG, PPM) to one uint8 tensor, always RGB."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from poisonkit.data.files import expect, reason
from poisonkit.errors import DataError, MissingError, fail
from poisonkit.types import ImageDataset

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".ppm", ".pgm"})
MOST_PIXELS = 4096 * 4096  # of one picture: a file of a few kilobytes can claim billions


def stack(pictures: Iterable[tuple[str, Path | bytes]], n: int, size: int | None = None) -> Tensor:
    """Decode ``n`` pictures, each a name for messages and a path or the encoded bytes: uint8 [n, 3, H, W].

    Every picture becomes RGB: a grey one has three equal channels, and transparency is dropped. With ``size`` every
    picture is resized to size x size, bilinearly; without it they must be of one size. A row depends on its picture and
    ``size`` alone. Memory is that of the result and one picture.

    Raises DataError, naming the picture, and MissingError without Pillow.
    """
    out: NDArray[np.uint8] | None = None
    read = 0
    for i, (name, source) in enumerate(pictures):
        image = _decode(name, source, size)
        if out is None:
            out = np.empty((n, *image.shape), np.uint8)
        _, h, w = image.shape
        rule = f"{out.shape[2]}x{out.shape[3]} pixels, as those before it"
        expect((h, w) == out.shape[2:], name, rule, f"{h}x{w}", "pass size= to resize them all")
        expect(i < n, name, f"the last of {n} pictures, one per label", "one more")
        out[i], read = image, i + 1
    expect(out is not None and read == n, "pictures", f"{n}, one per label", read)
    return torch.from_numpy(out)


def match(train: ImageDataset, test: ImageDataset) -> tuple[ImageDataset, ImageDataset]:
    """(train, test), once their images are found to be of one size; raises DataError where they are not."""
    rule = f"{train.shape[1]}x{train.shape[2]} pixels, as the training images"
    got = f"{test.shape[1]}x{test.shape[2]}"
    expect(train.shape == test.shape, "test images", rule, got, "pass size= to resize them all")
    return train, test


def _decode(name: str, source: Path | bytes, size: int | None) -> NDArray[np.uint8]:
    """One picture as uint8 [3, H, W]."""
    pillow = pil_image()
    try:
        # a name list: Pillow would otherwise try forty decoders, some of which start other programs
        file = io.BytesIO(source) if isinstance(source, bytes) else source
        with pillow.open(file, formats=("PNG", "JPEG", "PPM")) as picture:
            w, h = picture.size
            rule = f"at most {MOST_PIXELS} pixels"
            expect(w * h <= MOST_PIXELS, name, rule, f"{h}x{w}", "resize it beforehand")
            known = picture.mode in ("L", "P", "RGB", "RGBA", "CMYK")
            expect(known, name, "an 8-bit grey or colour picture", picture.mode)
            image = (picture.convert("RGBA") if picture.mode == "P" else picture).convert("RGB")
            if size is not None and (h, w) != (size, size):
                image = image.resize((size, size), pillow.Resampling.BILINEAR)
            return np.moveaxis(np.asarray(image), 2, 0)
    except DataError:
        raise
    except (
        *(OSError, ValueError, SyntaxError, LookupError, EOFError, TypeError, struct.error, zlib.error),
        *(MemoryError, OverflowError, pillow.DecompressionBombError, pillow.DecompressionBombWarning),
    ) as error:
        fail(name, "a whole PNG, JPEG or PPM picture", reason(error), error=DataError)


def pil_image() -> Any:
    """The module PIL.Image; raises MissingError without Pillow."""
    try:
        from PIL import Image
    except ImportError:
        fail("Pillow", "installed to decode pictures", "no module PIL", "pip install poisonkit[data]", MissingError)
    return Image
