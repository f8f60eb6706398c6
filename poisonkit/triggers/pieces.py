"""What the triggers share: work done piece by piece, so that no batch is too large, and one rule of rounding."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from poisonkit.errors import require

PIECE = 1 << 18  # bytes of pixels: arithmetic on a piece stays near the processor
TOGETHER = 1 << 16  # values that a network is given at once, whose features then stay near the processor, too


def by_pieces(images: Tensor, change: Callable[[Tensor, slice], Tensor]) -> Tensor:
    """``change`` of every piece of ``images`` (uint8 [N, C, H, W]) and the rows it holds, as one batch."""
    changed = torch.empty_like(images)
    rows = max(1, PIECE // max(1, images[:1].numel()))
    for start in range(0, len(images), rows):
        piece = slice(start, start + rows)
        changed[piece] = change(images[piece], piece)
    return changed


@torch.no_grad()
def by_batches(images: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """``change`` of ``images`` (uint8 [N, c, H, W]) by a network: batches of one size, the last filled up with black.

    A network rounds otherwise in a batch of another size, so this gives an image the same bytes whatever it comes with,
    on one machine. Another machine may round a pixel otherwise.
    """
    rows = min(32, max(1, TOGETHER // images.shape[1:].numel()))
    changed = []
    for part in torch.split(images, rows):
        full = torch.zeros(rows, *part.shape[1:], dtype=part.dtype, device=part.device)
        full[: len(part)] = part
        changed.append(change(full)[: len(part)])
    return torch.cat(changed)


def rounded(pixels: Tensor) -> Tensor:
    """Float pixels in [0, 255] to uint8, the nearest, halves up; ``pixels`` is overwritten."""
    return pixels.add_(0.5).to(torch.uint8)


def check_size(name: str, value: Tensor, images: Tensor) -> None:
    """Require ``value`` [1 or C, H, W] to be of the size of ``images`` [N, C, H, W]."""
    c, h, w = images.shape[1:]
    fits = value.shape[-2:] == (h, w) and value.shape[0] in (1, c)
    require(fits, name, f"of shape [1 or {c}, {h}, {w}], as the images", list(value.shape))
