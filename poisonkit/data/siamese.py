"""Differentiable Siamese augmentation: the same random change of two batches of images, with gradients to the pixels.

Zhao and Bilen, "Dataset Condensation with Differentiable Siamese Augmentation", ICML 2021,
https://arxiv.org/abs/2102.08259.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import pi
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from poisonkit.errors import require
from poisonkit.random import Key

Change = Literal["color", "crop", "cutout", "flip", "scale", "rotate"]
CHANGES: tuple[Change, ...] = ("color", "crop", "cutout", "flip", "scale", "rotate")

# Pixels that come in from outside are mid-grey, which networks here see as 0. Brightness is in units of what they
# divide pixels by.
_GREY, _UNIT = 127.5, 63.75
_CROP, _CUTOUT, _SCALE, _DEGREES = 0.125, 0.5, 1.2, 15.0


@dataclass(frozen=True)
class Siamese:
    """One of several changes, drawn uniformly, with random strength.

    color   brightness by up to half a unit (63.75 pixel steps) either way, saturation times U(0, 2) about the mean of
            the channels, contrast times U(0.5, 1.5) about the mean of the image
    crop    a shift of up to an eighth of the side, by whole pixels
    cutout  a grey square of half the side, cut off at the border
    flip    left to right, with probability one half
    scale   height and width, independently, divided by U(1/1.2, 1.2)
    rotate  by up to 15 degrees either way

    changes  which of them; leave out "flip" for digits
    """

    changes: tuple[Change, ...] = CHANGES

    def __post_init__(self) -> None:
        known = len(self.changes) > 0 and set(self.changes) <= set(CHANGES)
        require(known, "changes", f"one or more of {', '.join(CHANGES)}", self.changes)

    def draw(self, count: int, key: Key) -> Tensor:
        """What to do to ``count`` groups of images, for :meth:`apply`: float64 [count, 4], on the CPU.

        Which change, as a number in [0, 1), and three such numbers that it takes its strength from. Row i depends on
        ``key`` and i alone.
        """
        return key.below((1 << 53,) * 4, torch.arange(count)).double() / (1 << 53)

    def apply(self, images: Tensor, drawn: Tensor) -> Tensor:
        """Images changed as ``drawn`` says: float [B, C, H, W], 0..255 or beyond, to the same; differentiable.

        ``drawn`` float64 [G, 4], of which each row holds for B/G consecutive images: those of a class, say; or one row
        for all, or one for each. Give the same ``drawn`` for the real and for the synthetic images of a class.
        Raises ArgumentError where G does not divide B.
        """
        groups = max(1, len(drawn))
        fits = drawn.ndim == 2 and drawn.shape[1] == 4 and len(images) % groups == 0
        require(fits, "drawn", f"of shape [G, 4] with G a divisor of {len(images)}", list(drawn.shape))
        drawn = drawn.cpu().repeat_interleave(len(images) // groups, 0)
        which = (drawn[:, 0] * len(self.changes)).long()
        rows = [(which == i).nonzero()[:, 0] for i in range(len(self.changes))]
        parts = []
        for name, mine in zip(self.changes, rows, strict=True):
            if len(mine):
                # A view where all images have the same change
                chosen = images if len(mine) == len(images) else images[mine.to(images.device)]
                parts.append(_APPLY[name](chosen - _GREY, drawn[mine, 1:].to(images.device, images.dtype)))
        if len(parts) <= 1:
            return parts[0] + _GREY if parts else images
        back = torch.cat(rows).argsort().to(images.device)
        return torch.cat(parts)[back] + _GREY


def _color(x: Tensor, u: Tensor) -> Tensor:
    brightness, saturation, contrast = u[:, :, None, None, None].unbind(1)
    x = x + (brightness - 0.5) * _UNIT
    mean = x.mean(1, keepdim=True)
    x = (x - mean) * (2 * saturation) + mean
    mean = x.mean((1, 2, 3), keepdim=True)
    return (x - mean) * (contrast + 0.5) + mean


def _crop(x: Tensor, u: Tensor) -> Tensor:
    down, right = (_whole(u[:, i], -_share(side, _CROP), _share(side, _CROP)) for i, side in enumerate(x.shape[2:]))
    rows, in_rows = _moved(x.shape[2], down)
    columns, in_columns = _moved(x.shape[3], right)
    at = torch.arange(len(x), device=x.device)[:, None, None]
    # By pixel, so that one gather takes all channels
    picked = x.permute(0, 2, 3, 1)[at, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    return picked * (in_rows[:, :, None] & in_columns[:, None, :])[:, None]


def _cutout(x: Tensor, u: Tensor) -> Tensor:
    covered = []
    for i, side in enumerate(x.shape[2:]):
        size = _share(side, _CUTOUT)
        first = _whole(u[:, i], 0, side - size % 2)[:, None] - size // 2
        place = torch.arange(side, device=x.device)
        covered.append((place >= first) & (place < first + size))
    return x * ~(covered[0][:, :, None] & covered[1][:, None, :])[:, None]


def _flip(x: Tensor, u: Tensor) -> Tensor:
    return torch.where((u[:, 0] < 0.5)[:, None, None, None], x.flip(3), x)


def _scale(x: Tensor, u: Tensor) -> Tensor:
    across, along = (u[:, :2] * (_SCALE - 1 / _SCALE) + 1 / _SCALE).unbind(1)
    zero = torch.zeros_like(across)
    return _warp(x, [across, zero, zero, along])


def _rotate(x: Tensor, u: Tensor) -> Tensor:
    angle = (u[:, 0] - 0.5) * (2 * _DEGREES * pi / 180)
    return _warp(x, [angle.cos(), -angle.sin(), angle.sin(), angle.cos()])


_APPLY = {"color": _color, "crop": _crop, "cutout": _cutout, "flip": _flip, "scale": _scale, "rotate": _rotate}


def _share(side: int, share: float) -> int:
    return int(side * share + 0.5)


def _whole(u: Tensor, low: int, high: int) -> Tensor:
    """Uniform numbers in [0, 1) as whole ones from ``low`` to ``high``."""
    return low + (u * (high - low + 1)).long().clamp(max=high - low)  # a float32 below 1 may round to the end


def _moved(side: int, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Where the pixels of a side, moved by ``shift`` [B], come from, and whether from inside: [B, side] each."""
    source = torch.arange(side, device=shift.device) - shift[:, None]
    return source.clamp(0, side - 1), (source >= 0) & (source < side)


def _warp(x: Tensor, matrix: list[Tensor]) -> Tensor:
    """``x`` at coordinates in [-1, 1] that are multiplied by a matrix [[a, b], [c, d]] for each image, bilinearly."""
    theta = torch.stack(matrix, 1).view(-1, 2, 2)
    grid = affine_grid(torch.cat([theta, theta.new_zeros(len(theta), 2, 1)], 2), list(x.shape), align_corners=False)
    # The gradient of grid_sample has no deterministic form on a GPU
    return gathered(x, grid) if x.is_cuda and x.requires_grad else grid_sample(x, grid, align_corners=False)


def gathered(x: Tensor, grid: Tensor) -> Tensor:
    """``grid_sample(x, grid, align_corners=False)`` as sums of pixels that are looked up."""
    rows, columns = (_place(grid[..., i], side) for i, side in ((1, x.shape[2]), (0, x.shape[3])))
    pixels, at = x.permute(0, 2, 3, 1), torch.arange(len(x), device=x.device)[:, None, None]
    out = torch.zeros_like(pixels)
    for row, of_row in rows:
        for column, of_column in columns:
            out = out + pixels[at, row, column] * (of_row * of_column)[..., None]
    return out.permute(0, 3, 1, 2)


def _place(coordinate: Tensor, side: int) -> list[tuple[Tensor, Tensor]]:
    """The two pixels of a side next to a coordinate, and the share of each; none of it outside."""
    exact = ((coordinate + 1) * side - 1) / 2
    first = exact.floor()
    share = exact - first
    found = []
    for pixel, weight in ((first.long(), 1 - share), (first.long() + 1, share)):
        inside = (pixel >= 0) & (pixel < side)
        found.append((pixel.clamp(0, side - 1), weight * inside))
    return found
