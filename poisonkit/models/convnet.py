"""The convolutional network of dataset condensation, of any depth and width, which normalises its own input.

Dynamic Few-Shot Visual Learning without Forgetting. Spyros Gidaris, Nikos Komodakis. CVPR 2018.
https://arxiv.org/abs/1804.09458; as Zhao, Mopuri and Bilen condense with it, ICLR 2021, https://arxiv.org/abs/2006.05929.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import isqrt
from typing import Literal

import torch
from torch import Tensor, nn

from poisonkit.errors import require
from poisonkit.random import Key


@dataclass(frozen=True)
class ConvNet:
    """Blocks of a 3x3 convolution, a norm, a ReLU and an average pool that halves the image; then a linear layer.

    depth  blocks; 3 for images of 32 pixels and 4 for those of 64 give width x 4 x 4 features
    width  channels of every block
    norm   "instance", per image and channel; "batch", over the batch; or "none"
    """

    depth: int = 3
    width: int = 128
    norm: Literal["instance", "batch", "none"] = "instance"

    def __post_init__(self) -> None:
        require(self.depth >= 1, "depth", "1 or more", self.depth)
        require(self.width >= 1, "width", "1 or more", self.width)
        require(self.norm in ("instance", "batch", "none"), "norm", "'instance', 'batch' or 'none'", repr(self.norm))

    def build(self, shape: tuple[int, int, int], num_classes: int, key: Key) -> ConvolutionalNetwork:
        """A network on images ``[N, *shape]``, initialised from ``key`` as torch does."""
        least = 1 << self.depth
        fits = len(shape) == 3 and shape[0] >= 1 and min(shape[1:]) >= least
        require(fits, "shape", f"(C, H, W) of {least} pixels or more, which {self.depth} blocks halve", shape)
        require(num_classes >= 1, "num_classes", "1 or more", num_classes)
        with key.ambient():
            return ConvolutionalNetwork(self, shape, num_classes)

    def scaled(self, partitions: int) -> ConvNet:
        """The network one of ``partitions`` base models uses: the even width nearest width/√partitions, at least 2."""
        require(partitions >= 1, "partitions", "1 or more", partitions)
        floor = isqrt(self.width**2 // partitions)
        return replace(self, width=max(2, (floor + 1) // 2 * 2))


class ConvolutionalNetwork(nn.Module):
    """Images [N, C, H, W], uint8 or float 0..255, to logits [N, K]."""

    def __init__(self, config: ConvNet, shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        entering, height, width = shape
        layers: list[nn.Module] = []
        for _ in range(config.depth):
            layers += [
                nn.Conv2d(entering, config.width, 3, padding=1),
                _norm(config.norm, config.width),
                nn.ReLU(inplace=True),
                nn.AvgPool2d(2),
            ]
            entering, height, width = config.width, height // 2, width // 2
        self.layers = nn.Sequential(*layers)
        self.fc = nn.Linear(entering * height * width, num_classes)

    def features(self, images: Tensor) -> Tensor:
        """The activations [N, d] that the classifier ``fc`` takes."""
        # Constants, not the statistics of some data set: those would leak from one partition to another
        x = (images.to(self.fc.weight.dtype) - 127.5) / 63.75
        return torch.flatten(self.layers(x), 1)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.features(images))
        return logits


def _norm(name: str, width: int) -> nn.Module:
    if name == "instance":
        return nn.GroupNorm(width, width)
    return nn.BatchNorm2d(width) if name == "batch" else nn.Identity()
