"""A patch that two networks draw for each image: one its colours, the other where they show.

Nguyen and Tran, "Input-Aware Dynamic Backdoor Attack", NeurIPS 2020, arXiv 2010.08138, section 3.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from poisonkit.errors import require
from poisonkit.triggers.pieces import by_batches, rounded


@dataclass(frozen=True, eq=False)
class Generated:
    """image + m·(p - image), with colours p and mask m drawn from the image.

    pattern  float [N, C, H, W], as :func:`centred` gives it, to colours [N, C, H, W], before they are squashed
    mask     the same to a mask [N, 1, H, W]
    """

    pattern: nn.Module
    mask: nn.Module

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 [N, C, H, W] to a copy, each with its own patch, rounded to the nearest, halves up."""
        return self.crossed(images, images)

    def crossed(self, images: Tensor, donors: Tensor) -> Tensor:
        """uint8 [N, C, H, W] to a copy, each with the patch of its donor, of the same shape."""
        require(images.shape == donors.shape, "donors", f"of shape {list(images.shape)}", list(donors.shape))
        for network in (self.pattern, self.mask):
            network.eval().to(images.device)

        def drawn(pairs: Tensor) -> Tensor:
            image, donor = pairs.float().chunk(2, 1)
            seen = centred(donor)
            return rounded(patched(image, colours(self.pattern, seen), shown(self.mask, seen)))

        return by_batches(torch.cat([images, donors], 1), drawn)


def centred(images: Tensor) -> Tensor:
    """Pixels 0..255 to [-2, 2]."""
    return (images.float() - 127.5) / 63.75


def colours(pattern: nn.Module, seen: Tensor) -> Tensor:
    """What ``pattern`` draws, in [0, 255]."""
    drawn: Tensor = 127.5 * (torch.tanh(pattern(seen)) + 1)
    return drawn


def shown(mask: nn.Module, seen: Tensor) -> Tensor:
    """Where it shows: in [0, 1], pushed to the ends."""
    soft = torch.tanh(mask(seen)) / 2 + 0.5
    return torch.tanh(20 * soft - 10) / 2 + 0.5


def patched(images: Tensor, colours: Tensor, shown: Tensor) -> Tensor:
    """``images`` with ``colours``, where they are ``shown``."""
    return images + shown * (colours - images)
