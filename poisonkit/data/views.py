"""Two strongly augmented views of an image, each a function of a key and of an image's place in its data set.

Sara Atito, Muhammad Awais, Josef Kittler, "SiT: Self-supervised vIsion Transformer", 2021,
https://arxiv.org/abs/2104.03602; with the sizes of Interleaved Ensemble Unlearning, arXiv 2410.01128.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from poisonkit.errors import require
from poisonkit.random import Key

# A pixel of 0 and a step of 1 after the normalisation of this package's networks
_ZERO, _UNIT = 127.5, 63.75
_RECTANGLES = 24
_FINE = 1 << 24


@dataclass(frozen=True)
class Views:
    """A crop, mirrored half of the time, in other colours; and the same with rectangles of it replaced.

    area        share of the image that the crop holds, at least
    jitter      how many images get other colours
    colours     largest change of brightness, contrast, saturation (factors) and hue (of the colour circle)
    grey        how many images lose their colours
    rectangle   side of a rectangle, as a share of the image's, at most
    replaced    share of the pixels that rectangles cover, between these two; they hold noise, or nothing, by chance
    """

    area: float = 0.75
    jitter: float = 0.8
    colours: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)
    grey: float = 0.2
    rectangle: float = 0.3
    replaced: tuple[float, float] = (0.05, 0.3)

    def __post_init__(self) -> None:
        require(0 < self.area <= 1, "area", "a share in (0, 1]", self.area)
        require(0 <= self.jitter <= 1, "jitter", "a probability in [0, 1]", self.jitter)
        require(all(0 <= c < 1 for c in self.colours), "colours", "in [0, 1)", self.colours)
        require(0 <= self.grey <= 1, "grey", "a probability in [0, 1]", self.grey)
        require(0 < self.rectangle <= 1, "rectangle", "a share in (0, 1]", self.rectangle)
        low, high = self.replaced
        require(0 <= low <= high <= 1, "replaced", "(low, high) with 0 <= low <= high <= 1", self.replaced)

    def __call__(self, images: Tensor, positions: Tensor, key: Key) -> tuple[Tensor, Tensor]:
        """The two views of uint8 or float [B, C, H, W], float32 on the same scale; the second holds the first's crop.

        View i depends on its own pixels, ``positions[i]`` (int64 [B], on the same device) and ``key`` alone.
        """
        chance = _uniform(key, positions, 12)
        cropped = _crop(images.float(), self.area, chance[:, :5])
        coloured = self._recolour(cropped, chance[:, 5:12])
        return coloured, self._corrupt(coloured, positions, key)

    def _recolour(self, x: Tensor, chance: Tensor) -> Tensor:
        if x.shape[1] != 3:  # colours are of red, green and blue
            return x
        brightness, contrast, saturation, hue = self.colours
        factors = 1 + (2 * chance[:, :3] - 1) * chance.new_tensor([brightness, contrast, saturation])
        light, strength, tint = (factor[:, None, None, None] for factor in factors.unbind(1))
        y = (x * light).clamp(0, 255)
        mean = _grey(y).mean((2, 3), keepdim=True)
        y = (mean + (y - mean) * strength).clamp(0, 255)
        y = (_grey(y) + (y - _grey(y)) * tint).clamp(0, 255)
        y = _turn_hue(y, (2 * chance[:, 3] - 1) * hue)
        x = torch.where((chance[:, 4] < self.jitter)[:, None, None, None], y, x)
        return torch.where((chance[:, 5] < self.grey)[:, None, None, None], _grey(x).expand_as(x), x)

    def _corrupt(self, x: Tensor, positions: Tensor, key: Key) -> Tensor:
        count, channels, height, width = x.shape
        chance = _uniform(key.child("rectangles"), positions, 5 * _RECTANGLES + 1)
        low, high = self.replaced
        wanted = low + (high - low) * chance[:, -1]
        down, across = (torch.arange(n, device=x.device)[None] for n in (height, width))
        noise = _ZERO + _UNIT * _normal(key.child("noise"), positions, channels * height * width).view(x.shape)
        out, covered = x, torch.zeros(count, 1, height, width, dtype=torch.bool, device=x.device)
        for top, left, tall, wide, kind in chance[:, :-1].view(count, _RECTANGLES, 5).permute(1, 2, 0):
            rows = _span(down, top, (tall * self.rectangle * height).clamp(min=1), height)
            columns = _span(across, left, (wide * self.rectangle * width).clamp(min=1), width)
            missing = covered.float().mean((1, 2, 3)) < wanted
            inside = (rows[:, :, None] & columns[:, None] & missing[:, None, None])[:, None]
            filling = torch.where((kind < 0.5)[:, None, None, None], noise, _ZERO)
            out, covered = torch.where(inside, filling, out), covered | inside
        return out


def _uniform(key: Key, positions: Tensor, draws: int) -> Tensor:
    """float32 [n, draws] in [0, 1), by position."""
    return key.below((_FINE,) * draws, positions).float() / _FINE


def _normal(key: Key, positions: Tensor, draws: int) -> Tensor:
    """Standard normal float32 [n, draws], by position."""
    normal: Tensor = torch.special.ndtri(_uniform(key, positions, draws) + 0.5 / _FINE)
    return normal


def _crop(x: Tensor, area: float, chance: Tensor) -> Tensor:
    """A window of at least ``area`` of the image and of an aspect between 3:4 and 4:3, bicubic at the image's size."""
    share, aspect, top, left, mirror = chance.unbind(1)
    share = area + (1 - area) * share
    aspect = torch.exp((2 * aspect - 1) * torch.log(aspect.new_tensor(4 / 3)))
    tall, wide = ((share / aspect).sqrt().clamp(max=1), (share * aspect).sqrt().clamp(max=1))
    down, right = (1 - tall) * (2 * top - 1), (1 - wide) * (2 * left - 1)
    _, _, height, width = x.shape
    # Centres of the pixels in [-1, 1], and where each is read; by plain arithmetic, the same in any batch
    ys, xs = ((2 * torch.arange(n, device=x.device) + 1) / n - 1 for n in (height, width))
    wide = torch.where(mirror < 0.5, wide, -wide)
    read_y = (down[:, None] + tall[:, None] * ys)[:, :, None].expand(-1, height, width)
    read_x = (right[:, None] + wide[:, None] * xs)[:, None].expand(-1, height, width)
    grid = torch.stack([read_x, read_y], 3)
    return grid_sample(x, grid, "bicubic", "border", align_corners=False).clamp(0, 255)


def _span(places: Tensor, start: Tensor, length: Tensor, whole: int) -> Tensor:
    """Which of ``places`` lie in a stretch of ``length`` that starts at the share ``start`` of where it can: [B, n]."""
    length = length.floor()
    first = (start * (whole - length + 1)).floor()
    return (places >= first[:, None]) & (places < (first + length)[:, None])


def _grey(x: Tensor) -> Tensor:
    """Luma (ITU-R BT.601) of [B, 3, H, W]: [B, 1, H, W]."""
    return (x * x.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)


def _turn_hue(x: Tensor, turn: Tensor) -> Tensor:
    """RGB [B, 3, H, W] with the hue of every pixel moved by ``turn`` [B] of the colour circle."""
    high, low = x.amax(1), x.amin(1)
    spread = (high - low).clamp(min=1e-6)
    red, green, blue = x.unbind(1)
    hue = torch.where(
        high == red,
        (green - blue) / spread,
        torch.where(high == green, 2 + (blue - red) / spread, 4 + (red - green) / spread),
    )
    hue = hue + 6 * turn[:, None, None]
    # The three channels of a colour wheel: value less chroma times a trapezoid, at 5, 3 and 1 sixths
    sixth = torch.stack([(hue + n) % 6 for n in (5, 3, 1)], 1)
    ramp = torch.minimum(sixth, 4 - sixth).clamp(0, 1)
    return high[:, None] - (high - low)[:, None] * ramp
