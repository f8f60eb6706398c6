"""The largest margins of a network: images, anywhere in the box of pixels, that it is surest belong to a class.

A backdoor makes that of its target stand out: Wang, Xiang, Miller and Kesidis, "MM-BD: Post-Training Detection of
Backdoor Attacks with Arbitrary Backdoor Pattern Types Using a Maximum Margin Statistic", arXiv 2205.06900, 2022.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from poisonkit.errors import require
from poisonkit.random import Key

# float images [B, C, H, W], 0..255, to logits [B, K]
Scores = Callable[[Tensor], Tensor]


def margin(scores: Tensor, classes: Tensor) -> Tensor:
    """The logit of a class minus the largest of the others: float [B, K], int64 [B] -> float [B]."""
    place = classes[:, None]
    return (scores.gather(1, place) - scores.scatter(1, place, -torch.inf).amax(1, keepdim=True))[:, 0]


@dataclass(frozen=True)
class Ascent:
    """Gradient ascent of margins over images, whose pixels count from 0 to 1 here.

    steps  how many
    rate   of each
    kind   "sign", along the sign of the gradient and back into the box; or "plain", along the gradient, where a pixel
           beyond the box is looked at on its edge and has no gradient any more, as in the authors' code
    """

    steps: int = 1
    rate: float = 0.02
    kind: Literal["sign", "plain"] = "sign"

    def __post_init__(self) -> None:
        require(self.steps >= 1, "steps", "1 or more", self.steps)
        require(self.rate > 0, "rate", "above 0", self.rate)
        require(self.kind in ("sign", "plain"), "kind", "'sign' or 'plain'", repr(self.kind))

    def step(self, scores: Scores, pixels: Tensor, classes: Tensor, batch_size: int = 250) -> tuple[Tensor, Tensor]:
        """One step from ``pixels`` (float [B, C, H, W]): where it leads, and the margins of ``classes`` before it.

        An image moves by itself, whatever the others are, so all classes may share a batch.
        """
        moved, margins = [], []
        for some, wanted in zip(torch.split(pixels, batch_size), torch.split(classes, batch_size), strict=True):
            free = some.detach().requires_grad_(True)
            found = margin(scores(255 * free.clamp(0, 1)), wanted)
            (slope,) = torch.autograd.grad(found.sum(), free)
            plain = self.kind == "plain"
            moved.append(free.detach() + self.rate * slope if plain else self._signed(free.detach(), slope))
            margins.append(found.detach())
        return torch.cat(moved), torch.cat(margins)

    def __call__(self, scores: Scores, pixels: Tensor, classes: Tensor) -> Tensor:
        """Where ``steps`` steps lead."""
        for _ in range(self.steps):
            pixels, _ = self.step(scores, pixels, classes)
        return pixels

    def _signed(self, pixels: Tensor, slope: Tensor) -> Tensor:
        return (pixels + self.rate * slope.sign()).clamp(0, 1)


def noise(count: int, num_classes: int, shape: tuple[int, int, int], key: Key) -> tuple[Tensor, Tensor]:
    """``count`` uniform images for each class to start from, float [K·count, C, H, W] in [0, 1], and their classes."""
    pixels = torch.rand((num_classes * count, *shape), generator=key.generator())
    return pixels, torch.arange(num_classes).repeat_interleave(count)
