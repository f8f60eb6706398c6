"""AttnBlock: where a vision transformer looks most is blacked out, and the image classified again.

Akshayvarun Subramanya, Aniruddha Saha, Soroush Abbasi Koohpayegani, Ajinkya Tejankar, Hamed Pirsiavash, "Backdoor
Attacks on Vision Transformers", 2022, https://arxiv.org/abs/2206.08477. Where it looks is GradRollout: Abnar and
Zuidema, "Quantifying Attention Flow in Transformers", 2020, https://arxiv.org/abs/2005.00928, weighted by gradients.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate

from poisonkit.errors import require
from poisonkit.models import predict
from poisonkit.models.vit import attentions
from poisonkit.perturb import frozen
from poisonkit.random import Key
from poisonkit.train import Journal
from poisonkit.types import ImageDataset


@dataclass(frozen=True)
class AttnBlock:
    """Blacks out a square about the largest value of the image's attention map. Needs no clean images.

    block         side of the square as a share of the image's: 30 of 224 pixels in the authors' code
    window        side of the box filter that smooths the map, likewise: 31 of 224
    discard       share of each layer's attention that counts as none, the smallest
    legacy_order  pair the attention of the first layer with the gradient of the last, as the authors' code does
    batch_size    of images whose gradients are taken at a time
    """

    source: ClassVar[str] = "Subramanya et al. 2022, arXiv 2206.08477"

    block: float = 30 / 224
    window: float = 31 / 224
    discard: float = 0.9
    legacy_order: bool = False
    batch_size: int = 64

    def __post_init__(self) -> None:
        require(0 < self.block <= 1, "block", "a share in (0, 1]", self.block)
        require(0 < self.window <= 1, "window", "a share in (0, 1]", self.window)
        require(0 <= self.discard < 1, "discard", "a share in [0, 1)", self.discard)
        require(self.batch_size >= 1, "batch_size", "1 or more", self.batch_size)

    def check_model(self, model: nn.Module, data: ImageDataset | None = None) -> None:
        """Raise ArgumentError for a network without attention that can be looked at."""
        with attentions(model):
            pass

    def __call__(
        self, model: nn.Module, clean: ImageDataset | None, *, key: Key, journal: Journal | None = None
    ) -> Blocking:
        self.check_model(model)
        return Blocking(model, self)


class Blocking:
    """A vision transformer that answers for images with a square of them blacked out."""

    def __init__(self, model: nn.Module, config: AttnBlock) -> None:
        self.model, self.config = model, config

    def predict(self, images: Tensor) -> Tensor:
        return predict(self.model, self.blocked(images))

    def flagged(self, images: Tensor) -> Tensor:
        """Images whose class changes."""
        return self.predict(images) != predict(self.model, images)

    def blocked(self, images: Tensor) -> Tensor:
        """uint8 [M, C, H, W], the square black."""
        device = next(self.model.parameters()).device
        parts = [self._block(part.to(device)).to(images.device) for part in torch.split(images, self.config.batch_size)]
        return torch.cat(parts)

    def _block(self, images: Tensor) -> Tensor:
        _, _, height, width = images.shape
        odd = max(1, round(self.config.window * min(height, width)) // 2 * 2 + 1)
        seen = interpolate(rollout(self.model, images, self.config)[:, None], (height, width), mode="bilinear")
        seen = avg_pool2d(seen, odd, 1, odd // 2)[:, 0]
        best = seen.flatten(1).argmax(1)
        tall, wide = (max(1, round(self.config.block * side)) for side in (height, width))
        # A square that would hang over is moved inside
        top = (best // width - tall // 2).clamp(0, height - tall)
        left = (best % width - wide // 2).clamp(0, width - wide)
        rows, columns = (torch.arange(side, device=images.device) for side in (height, width))
        inside_rows = (rows >= top[:, None]) & (rows < (top + tall)[:, None])
        inside_columns = (columns >= left[:, None]) & (columns < (left + wide)[:, None])
        return images.masked_fill((inside_rows[:, :, None] & inside_columns[:, None])[:, None], 0)


def rollout(model: nn.Module, images: Tensor, config: AttnBlock) -> Tensor:
    """How much each patch has to do with the predicted class: float32 [B, rows, columns], at most 1.

    Of every layer, the mean over heads of attention times its gradient, what is negative or small left out, plus the
    identity, halved, each row to sum 1; the layers multiplied, and read at the class token.
    """
    with frozen(model), attentions(model) as maps, torch.enable_grad():
        # The attention depends on pixels that ask for a gradient, since the weights do not
        logits = model(images.float().requires_grad_(True))
        slopes = torch.autograd.grad(logits.amax(1).sum(), maps)
    if config.legacy_order:
        slopes = slopes[::-1]
    tokens = maps[0].shape[-1]
    identity = torch.eye(tokens, device=images.device)
    flow = identity
    for attention, slope in zip(maps, slopes, strict=True):
        mixed = (attention.detach() * slope).mean(1).clamp(min=0).flatten(1)
        small = mixed.argsort(1)[:, : int(config.discard * mixed.shape[1])]
        mixed = mixed.scatter(1, small, 0).view(-1, tokens, tokens)
        mixed = (mixed + identity) / 2
        flow = (mixed / mixed.sum(2, keepdim=True)) @ flow
    patches = flow[:, 0, 1:]
    _, _, height, width = images.shape
    rows = isqrt(patches.shape[1] * height // width)  # patches are square
    return (patches / patches.amax(1, keepdim=True).clamp(min=1e-12)).view(len(images), rows, -1)
