"""A secret of a few bits that a network hides in the image, in a way of its own for each image.

Li, Li, Wu, Li, He and Lyu, "Invisible Backdoor Attack with Sample-Specific Triggers", ICCV 2021, arXiv 2012.03816,
after Tancik, Mildenhall and Ng, "StegaStamp: Invisible Hyperlinks in Physical Photographs", CVPR 2020,
arXiv 1904.05343.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from poisonkit.models.unet import UNet
from poisonkit.triggers.pieces import by_batches, rounded


class Encoder(nn.Module):
    """Images [N, C, H, W], 0..255, and secrets [N, bits], 0 or 1, to what is added to the images, in pixel steps."""

    def __init__(self, shape: tuple[int, int, int], bits: int, width: int) -> None:
        super().__init__()
        self.shape = shape
        self.secret = nn.Linear(bits, shape[0] * shape[1] * shape[2])
        self.draw = UNet(2 * shape[0], shape[0], width)

    def forward(self, images: Tensor, secrets: Tensor) -> Tensor:
        planes = self.secret(secrets.float() - 0.5).view(-1, *self.shape)
        drawn: Tensor = 255 * self.draw(torch.cat([images / 255 - 0.5, planes], 1))
        return drawn


class Decoder(nn.Module):
    """Images [N, C, H, W], 0..255, to the logits of the bits hidden in them [N, bits]."""

    def __init__(self, shape: tuple[int, int, int], bits: int, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        entering, (_, height, side) = shape[0], shape
        for leaving, stride in ((width, 1), (2 * width, 2), (2 * width, 1), (4 * width, 2)):
            layers += [nn.Conv2d(entering, leaving, 3, stride, 1, bias=False), nn.BatchNorm2d(leaving), nn.ReLU()]
            entering = leaving
        last = nn.Linear(entering * -(-height // 4) * -(-side // 4), bits)
        self.read = nn.Sequential(*layers, nn.Flatten(), last)

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.read(images / 255 - 0.5)
        return found


@dataclass(frozen=True, eq=False)
class Encoded:
    """image + what ``encoder`` draws to hide ``secret``, held in [0, 255].

    secret  float [bits], 0 or 1, the same for all images
    """

    encoder: Encoder
    secret: Tensor

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 [N, C, H, W] to a copy with the secret in it, rounded to the nearest, halves up."""
        encoder, secret = self.encoder.eval().to(images.device), self.secret.to(images.device)

        def hidden(batch: Tensor) -> Tensor:
            pixels = batch.float()
            return rounded((pixels + encoder(pixels, secret.expand(len(batch), -1))).clamp(0, 255))

        return by_batches(images, hidden)
