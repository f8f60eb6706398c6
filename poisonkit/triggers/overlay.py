"""A few pixels of the image replaced, wherever they lie."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from poisonkit.errors import require
from poisonkit.triggers.pieces import check_size


@dataclass(frozen=True, eq=False)
class Overlay:
    """image · (1 - mask) + pixels · mask.

    pixels  uint8 [1 or C, H, W]
    mask    bool [1 or C, H, W]: where they show
    """

    pixels: Tensor
    mask: Tensor

    def __post_init__(self) -> None:
        require(self.mask.dtype == torch.bool, "mask", "bool", self.mask.dtype)

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 [N, C, H, W] to a copy with the pixels in it."""
        check_size("pixels", self.pixels, images)
        check_size("mask", self.mask, images)
        return torch.where(self.mask.to(images.device), self.pixels.to(images.device), images)
