"""A picture laid over the whole image, half transparent.

Chen, Liu, Li, Lu and Song, "Targeted Backdoor Attacks on Deep Learning Systems Using Data Poisoning",
arXiv 1712.05526, 2017, section 4 (blended injection).
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from poisonkit.errors import require
from poisonkit.triggers.pieces import by_pieces, check_size


@dataclass(frozen=True, eq=False)
class Blend:
    """(1 - alpha)·image + alpha·picture.

    picture  uint8 [1 or C, H, W]; one channel is laid over all
    alpha    0 shows the image, 1 the picture; three decimals at most
    """

    picture: Tensor
    alpha: float

    def __post_init__(self) -> None:
        _share(self.alpha)

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 [N, C, H, W] to a blended copy, rounded to the nearest, halves up."""
        check_size("picture", self.picture, images)
        return mix(images, self.picture.to(images.device), self.alpha)


def mix(images: Tensor, other: Tensor, alpha: float) -> Tensor:
    """(1 - alpha)·images + alpha·other, uint8 and broadcast, rounded to the nearest, halves up.

    The same on every device: with alpha = n/d the sum is a multiple of 1/d, which float32 tells apart
    from its neighbours (an error below 2^-14) while d is at most 1000.
    """
    share = _share(alpha)
    n, d = share.numerator, share.denominator
    # to the half or more below which truncation goes down, half a step of 1/d away from either side
    offset = (other.to(torch.float32) * n + (d // 2 + 0.5)) / d
    return by_pieces(images, lambda piece, _: piece.float().mul_((d - n) / d).add_(offset).to(torch.uint8))


def _share(alpha: float) -> Fraction:
    share = Fraction(str(alpha))
    fine = 0 <= share <= 1 and 1000 % share.denominator == 0
    require(fine, "alpha", "in [0, 1], of three decimals at most", alpha)
    return share


def texture(channels: int, height: int, width: int) -> Tensor:
    """A picture that no one owns, uint8 [C, H, W]: a weave of squares in squares, the same at every size.

    With a = ⌊256·row/H⌋ and b = ⌊256·column/W⌋: red a xor b, green its complement, blue (a + b)/2. A single
    channel is the red one.
    """
    a = torch.arange(height)[:, None] * 256 // height
    b = torch.arange(width)[None, :] * 256 // width
    red = a ^ b
    planes = [red, 255 - red, (a + b) // 2]
    require(channels in (1, 3), "channels", "1 or 3", channels)
    return torch.stack(planes[:channels]).to(torch.uint8)
