"""A network from images to images: what several attacks draw their triggers with.

Ronneberger, Fischer and Brox, "U-Net: Convolutional Networks for Biomedical Image Segmentation", MICCAI 2015,
arXiv 1505.04597; here with batch normalisation, three scales, and the nearest pixel to scale up.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, max_pool2d

from poisonkit.errors import require


class UNet(nn.Module):
    """float [N, channels, H, W] to [N, out, H, W], unbounded; 8×8 pixels or more.

    ``width``, twice and four times as many features at full, half and quarter scale.
    """

    def __init__(self, channels: int, out: int, width: int) -> None:
        super().__init__()
        require(width >= 1, "width", "1 or more features", width)
        widths = (width, 2 * width, 4 * width)
        self.down = nn.ModuleList(_block(a, b) for a, b in zip((channels, *widths), widths, strict=False))
        self.middle = _block(widths[-1], widths[-1])
        self.up = nn.ModuleList(
            _block(w + below, w) for w, below in zip(widths, (*widths[1:], widths[-1]), strict=True)
        )
        self.last = nn.Conv2d(width, out, 1)

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        require(min(height, width) >= 8, "images", "of 8x8 pixels or more", f"{height}x{width}")
        found, kept = images, []
        for block in self.down:
            kept.append(block(found))
            found = max_pool2d(kept[-1], 2)
        found = self.middle(found)
        for block, beside in zip(reversed(self.up), reversed(kept), strict=True):
            found = block(torch.cat([interpolate(found, beside.shape[-2:], mode="nearest"), beside], 1))
        drawn: Tensor = self.last(found)
        return drawn


def _block(entering: int, leaving: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (entering, leaving):
        layers += [
            nn.Conv2d(channels, leaving, 3, padding=1, bias=False),
            nn.BatchNorm2d(leaving),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)
