"""A turned image.

Xu, Li, Jiang and Xia, "BATT: Backdoor Attack with Transformation-based Triggers", ICASSP 2023, arXiv 2211.01806.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from poisonkit.data.turn import sources
from poisonkit.triggers.pieces import by_pieces


@dataclass(frozen=True)
class Rotation:
    """Turned by ``degrees`` counter-clockwise about the middle, to the nearest pixel, on black.

    The source of each pixel is found in steps of 2^-16 pixel, in whole numbers, as Pillow does: the same pixels.
    """

    degrees: float = 16.0

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 [N, C, H, W] to a turned copy."""
        c, h, w = images.shape[1:]
        place, inside = (each.to(images.device) for each in sources(self.degrees, h, w))
        return by_pieces(images, lambda piece, _: (piece.flatten(2)[..., place] * inside).view(-1, c, h, w))
