"""Pictures of pixels: a grid of images, and a PNG file of it."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

import torch
from torch import Tensor

from poisonkit.errors import require

SIGNATURE = b"\x89PNG\r\n\x1a\n"


def png(image: Tensor) -> bytes:
    """The PNG file of an image, uint8 [H, W] or [C, H, W] with C 1 (grey) or 3 (red, green, blue).

    Lossless, 8 bits a channel, the same bytes for the same pixels and zlib. Source: PNG, W3C, third edition, 2025.
    """
    require(image.dtype == torch.uint8, "image", "uint8 pixels 0..255", image.dtype)
    planes = image[None] if image.ndim == 2 else image
    require(
        planes.ndim == 3 and planes.shape[0] in (1, 3) and planes.numel() > 0,
        "image",
        "of shape [H, W], [1, H, W] or [3, H, W] with at least one pixel",
        list(image.shape),
    )
    channels, height, width = planes.shape
    lines = planes.permute(1, 2, 0).reshape(height, width * channels).cpu()
    # each line opens with its filter, 0 for none: an enlarged picture repeats itself, and deflate needs no more help
    raw = torch.cat([lines.new_zeros(height, 1), lines], dim=1).numpy().tobytes()
    header = struct.pack(">IIBBBBB", width, height, 8, 0 if channels == 1 else 2, 0, 0, 0)
    return SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(raw, 9)) + _chunk(b"IEND", b"")


def picture_grid(
    rows: Sequence[Tensor],
    scale: int | None = None,
    gap: int = 2,
    background: tuple[int, int, int] = (176, 182, 190),
) -> Tensor:
    """Rows of images on one canvas, uint8 [3, H', W']; each row is uint8 [n, C, H, W] with its own n and C.

    scale       how many times each pixel is repeated both ways; by default the least that makes the longer
                side 64 or more, so a digit of 8×8 and a photo of 64×64 come out the same size
    gap         pixels between images, after scaling
    background  the colour of the gaps and of the end of a short row
    """
    require(len(rows) > 0, "rows", "one or more", len(rows))
    for row in rows:
        require(row.dtype == torch.uint8, "rows", "uint8 pixels 0..255", row.dtype)
        require(
            row.ndim == 4 and row.shape[1] in (1, 3) and row.numel() > 0 and row.shape[2:] == rows[0].shape[2:],
            "rows",
            "of shape [n, 1 or 3, H, W] with the same H and W, and not empty",
            [list(each.shape) for each in rows],
        )
    side = max(rows[0].shape[2:])
    times = -(-64 // side) if scale is None else scale
    require(times >= 1, "scale", "1 or more", times)
    require(gap >= 0, "gap", "0 or more", gap)
    height, width = (times * int(length) for length in rows[0].shape[2:])
    columns = max(len(row) for row in rows)
    canvas = torch.tensor(background, dtype=torch.uint8)[:, None, None].repeat(
        1, len(rows) * (height + gap) - gap, columns * (width + gap) - gap
    )
    for i, row in enumerate(rows):
        large = row.cpu().repeat_interleave(times, 2).repeat_interleave(times, 3)
        for j, image in enumerate(large):
            top, left = i * (height + gap), j * (width + gap)
            canvas[:, top : top + height, left : left + width] = image
    return canvas


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
