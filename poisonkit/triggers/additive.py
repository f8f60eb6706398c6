"""A pattern added to every image, where pixels saturate at 0 and 255."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from poisonkit.errors import require
from poisonkit.triggers.pieces import by_pieces, check_size


@dataclass(frozen=True, eq=False)
class Additive:
    """image + pattern, held in [0, 255].

    pattern  int16 [1 or C, H, W], in pixel steps, each in [-255, 255]
    """

    pattern: Tensor

    def __post_init__(self) -> None:
        require(self.pattern.dtype == torch.int16, "pattern", "int16 pixel steps", self.pattern.dtype)
        require(bool((self.pattern.abs() <= 255).all()), "pattern", "in [-255, 255]", "more")

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 [N, C, H, W] to a copy with the pattern added."""
        check_size("pattern", self.pattern, images)
        return add(images, self.pattern.to(images.device))


def add(images: Tensor, pattern: Tensor) -> Tensor:
    """``images`` uint8 + ``pattern`` int16, both broadcast, held in [0, 255].

    In bytes alone: what has room for the pattern is clamped there first, so that the sum modulo 256 is the sum.
    """
    low = (-pattern).clamp(min=0).to(torch.uint8)
    high = (255 - pattern).clamp(max=255).to(torch.uint8)
    steps = (pattern & 255).to(torch.uint8)
    return by_pieces(images, lambda piece, _: piece.clamp(low, high).add_(steps))
