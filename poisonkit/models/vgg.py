"""VGG networks of any base width, which normalise their own uint8 input.

Very Deep Convolutional Networks for Large-Scale Image Recognition. Karen Simonyan, Andrew Zisserman.
ICLR 2015. https://arxiv.org/abs/1409.1556

State-dict keys and, at width 64, layers are those of torchvision's VGGs, so its weights load.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import isqrt
from typing import Literal

import torch
from torch import Tensor, nn

from poisonkit.errors import require
from poisonkit.random import Key

# 3x3 convolutions in each of the five stages; a stage ends with a pool that halves the image
STAGES: dict[int, tuple[int, ...]] = {
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
# channels of the stages, in base widths
_WIDTHS = (1, 2, 4, 8, 8)


@dataclass(frozen=True)
class VGG:
    """A VGG network.

    depth       11, 13, 16 or 19 layers with weights (configurations A, B, D, E of the paper)
    width       base width: 64 gives torchvision's networks; every layer is scaled by width/64
    batch_norm  a batch norm after every convolution (torchvision's ``_bn``)
    stem        "imagenet", three linear layers on 7x7 features; or "small", one on their mean, for images to 32 px
    dropout     probability of dropping a feature before the last linear layer, and with "imagenet" before the second
    """

    depth: int = 16
    width: int = 64
    batch_norm: bool = True
    stem: Literal["imagenet", "small"] = "imagenet"
    dropout: float = 0.5

    def __post_init__(self) -> None:
        require(self.depth in STAGES, "depth", f"one of {', '.join(map(str, STAGES))}", self.depth)
        require(self.width >= 1, "width", "1 or more", self.width)
        require(self.stem in ("imagenet", "small"), "stem", "'imagenet' or 'small'", repr(self.stem))
        require(0 <= self.dropout < 1, "dropout", "a probability in [0, 1)", self.dropout)

    def build(self, shape: tuple[int, int, int], num_classes: int, key: Key) -> VGGNetwork:
        """A network on images ``[N, *shape]``, initialised from ``key`` as torchvision does."""
        require(len(shape) == 3 and min(shape) >= 1, "shape", "(C, H, W), each 1 or more", shape)
        wide = self.stem == "small" or min(shape[1:]) >= 32
        require(wide, "shape", "at least 32x32 pixels for the imagenet stem", shape, "take stem='small'")
        require(num_classes >= 1, "num_classes", "1 or more", num_classes)
        with key.ambient():
            return VGGNetwork(self, shape[0], num_classes)

    def scaled(self, partitions: int) -> VGG:
        """The network one of ``partitions`` base models uses: the even width nearest width/√partitions, at least 2."""
        require(partitions >= 1, "partitions", "1 or more", partitions)
        floor = isqrt(self.width**2 // partitions)  # of width/√partitions, exactly
        return replace(self, width=max(2, (floor + 1) // 2 * 2))


class VGGNetwork(nn.Module):
    """Images [N, C, H, W], uint8 or float 0..255, to logits [N, K]."""

    def __init__(self, config: VGG, channels: int, num_classes: int) -> None:
        super().__init__()
        small = config.stem == "small"
        layers: list[nn.Module] = []
        entering = channels
        for count, times in zip(STAGES[config.depth], _WIDTHS, strict=True):
            leaving = times * config.width
            for _ in range(count):
                layers.append(nn.Conv2d(entering, leaving, 3, padding=1))
                layers += [nn.BatchNorm2d(leaving)] if config.batch_norm else []
                layers.append(nn.ReLU(inplace=True))
                entering = leaving
            # rounded up, a pool leaves the one pixel that is left of an 8x8 image
            layers.append(nn.MaxPool2d(2, 2, ceil_mode=small))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1 if small else 7)
        hidden = 64 * config.width

        def dropout() -> nn.Module:
            return nn.Dropout(config.dropout) if config.dropout else nn.Identity()

        self.classifier = (
            nn.Sequential(dropout(), nn.Linear(entering, num_classes))
            if small
            else nn.Sequential(
                nn.Linear(49 * entering, hidden),
                nn.ReLU(inplace=True),
                dropout(),
                nn.Linear(hidden, hidden),
                nn.ReLU(inplace=True),
                dropout(),
                nn.Linear(hidden, num_classes),
            )
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0, 0.01)
            if isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        # Constants, not the statistics of some data set: those would leak from one partition to another
        first = self.features[0]
        assert isinstance(first, nn.Conv2d)
        x = (images.to(first.weight.dtype) - 127.5) / 63.75
        x = torch.flatten(self.avgpool(self.features(x)), 1)
        logits: Tensor = self.classifier(x)
        return logits
