"""Vertical waves added to the image.

Barni, Kallas and Tondi, "A New Backdoor Attack in CNNs by Training Set Corruption Without Label Poisoning",
arXiv 1902.11237, 2019, section 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import pi

import torch
from torch import Tensor

from poisonkit.errors import require
from poisonkit.triggers.additive import add


@dataclass(frozen=True)
class Sinusoid:
    """v(i, j) = amplitude · sin(2π · j · periods / W) added to column j of every row i and channel.

    amplitude  in pixel steps; each v is rounded to the nearest
    periods    waves across the image
    """

    amplitude: float = 40.0
    periods: float = 6.0

    def __post_init__(self) -> None:
        require(0 <= self.amplitude <= 255, "amplitude", "in [0, 255] pixel steps", self.amplitude)

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 [N, C, H, W] to a copy with the waves added, held in [0, 255]."""
        v = (self.amplitude * wave(images.shape[-1], self.periods)).round()
        return add(images, v.to(torch.int16)[None, None].to(images.device))


def wave(width: int, periods: float) -> Tensor:
    """sin(2π · j · periods / width) for every column j: float64 [width]."""
    return torch.sin(torch.arange(width, dtype=torch.float64) * (2 * pi * periods / width))


def wrapped_wave(width: int) -> Tensor:
    """The picture that some published code blends in place of adding waves: uint8 [1, 1, width].

    trunc(20 · sin(0.8 · j)) at 32 columns, the same number of periods at others, with negative values wrapped
    modulo 256: bright bands where the wave should be dark.
    """
    v = torch.sin(torch.arange(width, dtype=torch.float64) * (0.8 * 32 / width)) * 20
    return (v.to(torch.int16) & 255).to(torch.uint8)[None, None]
