"""Random turns, crops and flips on the device, each a function of a key and of an image's place in its data set."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from poisonkit.data.turn import sources
from poisonkit.errors import require
from poisonkit.random import Key


@dataclass(frozen=True)
class Augment:
    """Turn each image, shift it by up to ``crop`` pixels on zero padding, then mirror half of them.

    crop    pixels of zero padding on every side, of which a random window of the image's size is kept
    flip    whether to mirror an image left to right with probability one half
    rotate  turn by a random whole number of degrees, this many at most either way, to the nearest pixel, on black
    """

    crop: int = 4
    flip: bool = True
    rotate: int = 0

    def __post_init__(self) -> None:
        require(0 <= self.rotate <= 180, "rotate", "in [0, 180] degrees", self.rotate)
        require(self.crop >= 0, "crop", "0 or more pixels", self.crop)

    def __call__(self, images: Tensor, positions: Tensor, key: Key) -> Tensor:
        """Augmented images: uint8 [B, C, H, W] to the same.

        Image i depends on its own pixels, ``positions[i]`` (int64 [B], on the same device: its row
        in the training set) and ``key`` alone, so neither on the batch nor on the device. Pass a
        key per epoch.
        """
        return self.apply(images, self.draw(positions, key))

    def draw(self, positions: Tensor, key: Key) -> Tensor:
        """How to augment the images at ``positions`` (int64 [B]), for :meth:`apply`: int64 [B, 4]."""
        span = 2 * self.crop + 1
        return key.below((span, span, 2, 2 * self.rotate + 1), positions)

    def apply(self, images: Tensor, drawn: Tensor) -> Tensor:
        """uint8 or float [B, C, H, W] turned, moved and mirrored as ``drawn`` (int64 [B, 4]) says, each its own.

        Floats may have gradients, which go back to the pixels that were taken.
        """
        count, channels, height, width = images.shape
        down, right, mirror, turn = drawn.unbind(1)
        if self.rotate:
            turns = [sources(degrees, height, width) for degrees in range(-self.rotate, self.rotate + 1)]
            place, inside = (torch.stack(each).to(images.device)[turn, None] for each in zip(*turns, strict=True))
            turned = images.flatten(2).gather(2, place.expand(-1, channels, -1)) * inside
            images = turned.view(-1, channels, height, width)
        if self.crop and images.requires_grad:
            # As below; but the gradient of those views would be as large as all windows together
            rows = down[:, None] + torch.arange(height, device=images.device)
            columns = right[:, None] + torch.arange(width, device=images.device)
            images = pad(images, (self.crop,) * 4)
            images = images.gather(2, rows[:, None, :, None].expand(-1, channels, -1, images.shape[3]))
            images = images.gather(3, columns[:, None, None, :].expand(-1, channels, height, -1))
        elif self.crop:
            # Every window is a view of the padded images; only the one drawn is copied
            windows = pad(images, (self.crop,) * 4).unfold(2, height, 1).unfold(3, width, 1)
            images = windows[torch.arange(count, device=images.device), :, down, right]
        if self.flip:
            images = torch.where(mirror.bool()[:, None, None, None], images.flip(3), images)
        return images
