"""Black and white marks in one or all four corners.

Turner, Tsipras and Madry, "Label-Consistent Backdoor Attacks", arXiv 1912.02771, 2019, section 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from poisonkit.errors import require
from poisonkit.triggers.additive import add

# +1 white, -1 black: the mark of the left corners; the right ones carry its mirror image.
_MARK = torch.tensor([[1, -1, -1], [-1, 1, -1], [1, -1, 1]], dtype=torch.int16)


@dataclass(frozen=True)
class Corners:
    """Marks of 3×3 cells flush with the corners; a cell is a pixel on 32 rows and 2×2 pixels on 64.

    amplitude  None to make the cells white and black; or how many pixel steps to add and subtract
    corners    "all" four, or the "lower_right" one
    """

    amplitude: int | None = None
    corners: Literal["all", "lower_right"] = "all"

    def __post_init__(self) -> None:
        require(self.amplitude is None or 0 <= self.amplitude <= 255, "amplitude", "in [0, 255]", self.amplitude)

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 [N, C, H, W] to a marked copy."""
        height, width = images.shape[-2:]
        fold = max(1, height // 32)
        side = 3 * fold
        require(min(height, width) >= 2 * side, "images", "of 6x6 pixels or more", f"{height}x{width}")
        left = _MARK.repeat_interleave(fold, 0).repeat_interleave(fold, 1)
        marks = torch.zeros(1, height, width, dtype=torch.int16)
        marks[0, -side:, -side:] = left.flip(1)
        if self.corners == "all":
            marks[0, :side, :side] = marks[0, -side:, :side] = left
            marks[0, :side, -side:] = left.flip(1)
        return add(images, marks.to(images.device) * (255 if self.amplitude is None else self.amplitude))
