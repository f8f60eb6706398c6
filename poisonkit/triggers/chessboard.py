"""A faint chessboard over the whole image.

Liao, Zhong, Squicciarini, Zhu and Miller, "Backdoor Embedding in Convolutional Neural Network Models via Invisible
Perturbation", arXiv 1808.10307, 2018; as Xiang, Miller and Kesidis use it, arXiv 2010.07489, 2020.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from poisonkit.errors import require
from poisonkit.triggers.additive import add


@dataclass(frozen=True)
class Chessboard:
    """``amplitude`` pixel steps added in every channel where the sum of row and column is even.

    static  only where row and column are both even: one pixel in four rather than two
    """

    amplitude: int = 3
    static: bool = False

    def __post_init__(self) -> None:
        require(0 <= self.amplitude <= 255, "amplitude", "in [0, 255] pixel steps", self.amplitude)

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 [N, C, H, W] to a copy with the pattern added, held in [0, 255]."""
        height, width = images.shape[-2:]
        i, j = torch.arange(height)[:, None], torch.arange(width)[None, :]
        on = (i % 2 == 0) & (j % 2 == 0) if self.static else (i + j) % 2 == 0
        return add(images, (on[None] * self.amplitude).to(torch.int16).to(images.device))
