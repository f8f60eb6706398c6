"""Random crops and flips on the device, each a function of a key and of an image's place in its data set."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from poisonkit.errors import require
from poisonkit.random import Key


@dataclass(frozen=True)
class Augment:
    """Shift each image by up to ``crop`` pixels on zero padding, then mirror half of them.

    crop  pixels of zero padding on every side, of which a random window of the image's size is kept
    flip  whether to mirror an image left to right with probability one half
    """

    crop: int = 4
    flip: bool = True

    def __post_init__(self) -> None:
        require(self.crop >= 0, "crop", "0 or more pixels", self.crop)

    def __call__(self, images: Tensor, positions: Tensor, key: Key) -> Tensor:
        """Augmented images: uint8 [B, C, H, W] to the same.

        Image i depends on its own pixels, ``positions[i]`` (int64 [B], on the same device: its row
        in the training set) and ``key`` alone, so neither on the batch nor on the device. Pass a
        key per epoch.
        """
        return self.apply(images, self.draw(positions, key))

    def draw(self, positions: Tensor, key: Key) -> Tensor:
        """How to augment the images at ``positions`` (int64 [B]), for :meth:`apply`: int64 [B, 3]."""
        span = 2 * self.crop + 1
        return key.below((span, span, 2), positions)

    def apply(self, images: Tensor, drawn: Tensor) -> Tensor:
        """uint8 or float [B, C, H, W] moved down and right and mirrored as ``drawn`` (int64 [B, 3]) says, each its own.

        Floats may have gradients, which go back to the pixels that were taken.
        """
        count, channels, height, width = images.shape
        down, right, mirror = drawn.unbind(1)
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
