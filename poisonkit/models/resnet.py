"""Residual networks of any depth and base width, which normalise their own uint8 input.

Deep Residual Learning for Image Recognition. Kaiming He, Xiangyu Zhang, Shaoqing Ren, Jian Sun.
CVPR 2016. https://arxiv.org/abs/1512.03385

State-dict keys and, at the same width, layers are those of torchvision's ResNets, so its weights
load. Every down-sampling shortcut is a 1x1 projection (the paper's option B), also in the CIFAR family.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
from math import isqrt
from typing import Literal

import torch
from torch import Tensor, nn

from poisonkit.errors import require
from poisonkit.random import Key

BASIC: dict[int, tuple[int, ...]] = {
    8: (1, 1, 1),
    20: (3, 3, 3),
    32: (5, 5, 5),
    44: (7, 7, 7),
    56: (9, 9, 9),
    110: (18, 18, 18),
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
}
BOTTLENECK: dict[int, tuple[int, ...]] = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


@dataclass(frozen=True)
class ResNet:
    """A residual network.

    depth    8, 20, 32, 44, 56, 110 (three stages of basic blocks), 18, 34 (four), 50, 101, 152 (bottlenecks)
    width    base width: 64 gives torchvision's networks, 16 He et al.'s CIFAR ones
    scaling  what the width scales: "all", every layer by width/64; or "bottleneck", only the 3x3 layers
             inside bottlenecks (torchvision's ``width_per_group``; depths 50, 101, 152 only)
    stem     "imagenet", 7x7 stride 2 and a 3x3 stride 2 max pool; or "small", 3x3 stride 1, for images of 8 to 32 px
    dropout  probability of dropping a feature before the classifier
    """

    depth: int = 18
    width: int = 64
    scaling: Literal["all", "bottleneck"] = "all"
    stem: Literal["imagenet", "small"] = "imagenet"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        depths = sorted(BASIC | BOTTLENECK)
        require(self.depth in depths, "depth", f"one of {', '.join(map(str, depths))}", self.depth)
        require(self.width >= 1, "width", "1 or more", self.width)
        require(self.scaling in ("all", "bottleneck"), "scaling", "'all' or 'bottleneck'", repr(self.scaling))
        require(
            self.scaling == "all" or self.depth in BOTTLENECK,
            "scaling",
            f"'all' at depth {self.depth}, which has no bottlenecks",
            repr(self.scaling),
            "take depth 50, 101 or 152",
        )
        require(self.stem in ("imagenet", "small"), "stem", "'imagenet' or 'small'", repr(self.stem))
        require(0 <= self.dropout < 1, "dropout", "a probability in [0, 1)", self.dropout)

    def build(self, shape: tuple[int, int, int], num_classes: int, key: Key) -> ResidualNetwork:
        """A network on images ``[N, *shape]``, initialised from ``key`` as torchvision does."""
        require(len(shape) == 3 and min(shape) >= 1, "shape", "(C, H, W), each 1 or more", shape)
        require(num_classes >= 1, "num_classes", "1 or more", num_classes)
        with key.ambient():
            return ResidualNetwork(self, shape[0], num_classes)

    def scaled(self, partitions: int) -> ResNet:
        """The network one of ``partitions`` base models uses: the even width nearest width/√partitions, at least 2.

        Cost grows with the square of the width, so the partitions together cost what this network
        does. 128 becomes 74, 64, 48, 42, 32 for 3, 4, 7, 9, 16 (arXiv 2306.16415). A tie goes up.
        """
        require(partitions >= 1, "partitions", "1 or more", partitions)
        floor = isqrt(self.width**2 // partitions)  # of width/√partitions, exactly
        return replace(self, width=max(2, (floor + 1) // 2 * 2))


def folded(model: nn.Module) -> nn.Module:
    """A copy of ``model`` for prediction: the batch norms of every residual network in it go into the layers before."""
    copy = deepcopy(model).eval()
    for conv, norm in _pairs(model).items():
        layer = copy.get_submodule(conv)
        assert isinstance(layer, nn.Conv2d)
        layer.bias = nn.Parameter(layer.weight.new_empty(layer.out_channels))
        parent, _, name = norm.rpartition(".")
        copy.get_submodule(parent).add_module(name, nn.Identity())
    fold_into(copy, model)
    return copy


@torch.no_grad()
def fold_into(copy: nn.Module, model: nn.Module) -> None:
    """Give ``copy``, the :func:`folded` of another network of this architecture, the weights of ``model``."""
    layers, pairs = dict(model.named_modules()), _pairs(model)
    for name, layer in copy.named_modules():
        old = layers[name]
        if name in pairs:
            norm = layers[pairs[name]]
            assert isinstance(norm, nn.BatchNorm2d)
            scale = norm.weight * (norm.get_buffer("running_var") + norm.eps).rsqrt()
            layer.get_parameter("weight").copy_(old.get_parameter("weight") * scale[:, None, None, None])
            layer.get_parameter("bias").copy_(norm.bias - norm.get_buffer("running_mean") * scale)
        else:
            for key, tensor in (*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)):
                tensor.copy_(getattr(old, key))


def _pairs(model: nn.Module) -> dict[str, str]:
    """The convolutions of the residual networks in ``model``, and the batch norm that follows each."""
    pairs: dict[str, str] = {}
    for path, module in model.named_modules():
        if isinstance(module, (ResidualNetwork, _Block)):
            names = {name: f"bn{name[4:]}" for name, _ in module.named_children() if name.startswith("conv")}
            if isinstance(module, _Block) and module.downsample is not None:
                names["downsample.0"] = "downsample.1"
            prefix = f"{path}." if path else ""
            pairs |= {prefix + conv: prefix + norm for conv, norm in names.items()}
    return pairs


class ResidualNetwork(nn.Module):
    """Images [N, C, H, W], uint8 or float 0..255, to logits [N, K]."""

    def __init__(self, config: ResNet, channels: int, num_classes: int) -> None:
        super().__init__()
        every = config.scaling == "all"
        width = config.width if every else 64
        small = config.stem == "small"
        self.conv1 = nn.Conv2d(channels, width, 3 if small else 7, 1 if small else 2, 1 if small else 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.Identity() if small else nn.MaxPool2d(3, 2, 1)
        bottleneck = config.depth in BOTTLENECK
        counts = BOTTLENECK[config.depth] if bottleneck else BASIC[config.depth]
        entering = width
        self.stages: list[str] = []
        for stage, count in enumerate(counts):
            planes = width << stage
            inner = planes if every else planes * config.width // 64
            leaving = 4 * planes if bottleneck else planes
            blocks: list[nn.Module] = []
            for index in range(count):
                stride = 2 if stage and not index else 1
                blocks.append(_Block(entering, inner, leaving, stride, bottleneck))
                entering = leaving
            self.stages.append(f"layer{stage + 1}")
            self.add_module(self.stages[-1], nn.Sequential(*blocks))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(config.dropout) if config.dropout else nn.Identity()
        self.fc = nn.Linear(entering, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def features(self, images: Tensor) -> Tensor:
        """The activations [N, d] that the classifier ``fc`` takes."""
        # Constants, not the statistics of some data set: those would leak from one partition to another
        x = (images.to(self.conv1.weight.dtype) - 127.5) / 63.75
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for stage in self.stages:
            x = self.get_submodule(stage)(x)
        return torch.flatten(self.avgpool(x), 1)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.dropout(self.features(images)))
        return logits


class _Block(nn.Module):
    """A residual block: 3x3, 3x3; or, as a bottleneck, 1x1, 3x3 (which carries the stride), 1x1."""

    def __init__(self, entering: int, inner: int, leaving: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        first, second = (1, stride) if bottleneck else (stride, 1)
        self.conv1 = _conv(entering, inner, 1 if bottleneck else 3, first)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = _conv(inner, inner, 3, second)
        self.bn2 = nn.BatchNorm2d(inner)
        if bottleneck:
            self.conv3 = _conv(inner, leaving, 1)
            self.bn3 = nn.BatchNorm2d(leaving)
        self.relu = nn.ReLU(inplace=True)
        self.bottleneck = bottleneck
        self.downsample = (
            nn.Sequential(_projection(entering, leaving, stride), nn.BatchNorm2d(leaving))
            if stride != 1 or entering != leaving
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        if self.bottleneck:
            y = self.bn3(self.conv3(self.relu(y)))
        y = y + (x if self.downsample is None else self.downsample(x))
        out: Tensor = self.relu(y)
        return out


class _ThinProjection(nn.Conv2d):
    """A 1x1 convolution of every ``step``-th pixel, which are taken first, for fewer than 16 channels.

    Left to oneDNN as a stride, the backward pass in channels-last writes past its workspace where
    there are fewer channels than lanes in a vector register, 8 or 16, and corrupts the heap
    (https://github.com/uxlfoundation/oneDNN/issues/6035). Elsewhere the stride is a tenth faster.
    """

    def __init__(self, entering: int, leaving: int, step: int) -> None:
        super().__init__(entering, leaving, 1, bias=False)
        self.step = step

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x[:, :, :: self.step, :: self.step])


def _projection(entering: int, leaving: int, stride: int) -> nn.Conv2d:
    thin = entering < 16 and stride > 1
    return _ThinProjection(entering, leaving, stride) if thin else _conv(entering, leaving, 1, stride)


def _conv(entering: int, leaving: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(entering, leaving, size, stride, size // 2, bias=False)
