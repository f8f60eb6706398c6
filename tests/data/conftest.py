"""What the readers' tests share: pictures as bytes, and Python 2's way to pickle."""

from __future__ import annotations

import io
import itertools
import struct
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def encode() -> Callable[..., bytes]:
    """Pixels [H, W] or [H, W, 3] as the bytes of a PNG (or other) file."""

    def encode(pixels: np.ndarray, kind: str = "PNG", **options: object) -> bytes:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, kind, **options)
        return file.getvalue()

    return encode


@pytest.fixture
def python2_pickle() -> Callable[[dict[str, object]], bytes]:
    """A dictionary of strings, lists and uint8 arrays as Python 2 pickles it, protocol 2: every string in bytes."""

    def pickled(values: dict[str, object]) -> bytes:
        number = itertools.count(1)

        def put() -> bytes:
            return b"q" + struct.pack("<B", next(number))

        def text(value: bytes) -> bytes:
            if len(value) < 256:
                return b"U" + struct.pack("<B", len(value)) + value + put()
            return b"T" + struct.pack("<i", len(value)) + value + put()

        def item(value: object) -> bytes:
            if isinstance(value, str):
                return text(value.encode("latin1"))
            if isinstance(value, int):
                return b"K" + struct.pack("<B", value) if value < 256 else b"M" + struct.pack("<H", value)
            if isinstance(value, list):
                return b"]" + put() + b"(" + b"".join(map(item, value)) + b"e"
            assert isinstance(value, np.ndarray)
            assert value.dtype == np.uint8
            start = b"cnumpy.core.multiarray\n_reconstruct\n" + put() + b"cnumpy\nndarray\n" + put()
            start += b"K\x00\x85" + put() + text(b"b") + b"\x87" + put() + b"R" + put()
            shape = b"".join(map(item, value.shape)) + b"\x86" + put()
            dtype = b"cnumpy\ndtype\n" + put() + text(b"u1") + b"K\x00K\x01\x87" + put() + b"R" + put()
            dtype += b"(K\x03" + text(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00t" + put() + b"b"
            return start + b"(K\x01" + shape + dtype + b"\x89" + text(value.tobytes()) + b"t" + put() + b"b"

        start = b"\x80\x02}" + put() + b"("
        return start + b"".join(item(key) + item(value) for key, value in values.items()) + b"u."

    return pickled
