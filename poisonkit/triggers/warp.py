"""A smooth warp of the image, too small to see.

Nguyen and Tran, "WaNet: Imperceptible Warping-based Backdoor Attack", ICLR 2021, arXiv 2102.10369, section 3.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from poisonkit.errors import require
from poisonkit.random import Key
from poisonkit.triggers.pieces import by_pieces, rounded


@dataclass(frozen=True, eq=False)
class Warp:
    """Every pixel taken, bilinearly, from where ``grid`` says.

    grid  float32 [1 or N, H, W, 2]: x, then y, of the source of each pixel; -1 is the centre of the first column
          or row and 1 that of the last. One grid serves every image, N serve one each.
    """

    grid: Tensor

    def __post_init__(self) -> None:
        fits = self.grid.ndim == 4 and self.grid.shape[3] == 2 and bool((self.grid.abs() <= 1).all())
        require(fits, "grid", "of shape [1 or N, H, W, 2], in [-1, 1]", list(self.grid.shape))

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 [N, C, H, W] to a warped copy, rounded to the nearest, halves up."""
        n, _, h, w = images.shape
        fits = self.grid.shape[0] in (1, n) and self.grid.shape[1:3] == (h, w)
        require(fits, "grid", f"of shape [1 or {n}, {h}, {w}, 2], as the images", list(self.grid.shape))
        grid = self.grid.to(images.device)
        if len(grid) > 1:
            return by_pieces(images, lambda piece, rows: _sample_each(piece, grid[rows]))
        corners = _corners(grid)
        return by_pieces(images, lambda piece, _: _sample(piece, corners))


def _corners(grid: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The four pixels around each source and their weights: flat indices int64 and float32, each [n, H·W]."""
    n, h, w, _ = grid.shape
    x, y = ((grid[..., axis] + 1) * ((side - 1) / 2) for axis, side in ((0, w), (1, h)))
    # a source on the last column or row has a neighbour inside, of weight 0
    left, top = (at.floor().clamp_(max=max(side - 2, 0)) for at, side in ((x, w), (y, h)))
    right, below = x - left, y - top
    step, line = int(w > 1), w * int(h > 1)
    first = (top.long() * w + left.long()).view(n, h * w)
    places = (first, first + step, first + line, first + step + line)
    weights = ((1 - right) * (1 - below), right * (1 - below), (1 - right) * below, right * below)
    return [(place, weight.view(n, h * w)) for place, weight in zip(places, weights, strict=True)]


def _sample(images: Tensor, corners: list[tuple[Tensor, Tensor]]) -> Tensor:
    """One grid for all images: pixels first, so that what is taken is a stretch of memory."""
    n, c, h, w = images.shape
    pixels = images.flatten(2).permute(2, 0, 1).reshape(h * w, n * c)
    total = torch.zeros(pixels.shape, dtype=torch.float32, device=images.device)
    # products and sums one by one, never fused, so that every batch, layout and device gives the same bits
    for place, weight in corners:
        total += pixels.index_select(0, place[0]) * weight[0, :, None]
    return rounded(total).view(h * w, n, c).permute(1, 2, 0).reshape(n, c, h, w)


def _sample_each(images: Tensor, grids: Tensor) -> Tensor:
    """A grid for each image."""
    flat = images.flatten(2)
    total = torch.zeros(flat.shape, dtype=torch.float32, device=images.device)
    for place, weight in _corners(grids):
        total += flat.gather(2, place[:, None].expand_as(flat)) * weight[:, None]
    return rounded(total).view(images.shape)


def elastic_grid(height: int, width: int, cells: int, strength: float, key: Key) -> Tensor:
    """The grid of WaNet: float32 [1, H, W, 2].

    ``cells`` × ``cells`` offsets, uniform in [-1, 1], divided by their mean magnitude, spread over the image
    bicubically (the outermost on its corners), and added to the identity times ``strength``/H.
    """
    require(cells >= 2, "cells", "2 or more", cells)
    control = torch.rand(1, 2, cells, cells, generator=key.generator()) * 2 - 1
    control /= control.abs().mean()
    offsets = interpolate(control, (height, width), mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
    return (identity_grid(height, width) + strength * offsets / height).clamp(-1, 1)


def identity_grid(height: int, width: int) -> Tensor:
    """The grid that leaves an image as it is: float32 [1, H, W, 2]."""
    y, x = torch.linspace(-1, 1, height), torch.linspace(-1, 1, width)
    return torch.stack([x.expand(height, width), y[:, None].expand(height, width)], 2)[None]


def jittered(grid: Tensor, count: int, key: Key) -> Tensor:
    """``count`` copies of ``grid`` [1, H, W, 2], each coordinate moved by its own uniform [-1, 1]/H and kept inside."""
    _, h, w, _ = grid.shape
    generator = key.generator()
    noise = torch.stack([torch.rand(h, w, 2, generator=generator) for _ in range(count)]) if count else grid[:0]
    return (grid + (noise * 2 - 1) / h).clamp_(-1, 1)
