"""mixup: training on averages of two images and of their labels.

Zhang, Cisse, Dauphin and Lopez-Paz, "mixup: Beyond Empirical Risk Minimization", ICLR 2018,
https://arxiv.org/abs/1710.09412, equation 1. Against poison: Borgnia et al., "Strong Data Augmentation Sanitizes
Poisoning and Backdoor Attacks Without an Accuracy Tradeoff", https://arxiv.org/abs/2011.09527.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from poisonkit.errors import require
from poisonkit.random import Key
from poisonkit.train import Batch, Journal, Procedure, Recipe
from poisonkit.types import ImageDataset


@dataclass(frozen=True)
class Mixup(Procedure):
    """Every step mixes its batch with itself in another order, by a share drawn from Beta(alpha, alpha).

    alpha  near 0 hardly mixes; 1 draws the share uniformly, as the paper does on CIFAR
    """

    source: ClassVar[str] = "Zhang et al. 2018, arXiv 1710.09412"

    alpha: float = 1.0

    def __post_init__(self) -> None:
        require(self.alpha > 0, "alpha", "above 0", self.alpha)

    def __call__(
        self,
        data: ImageDataset,
        recipe: Recipe,
        *,
        key: Key,
        model: nn.Module | None = None,
        journal: Journal | None = None,
    ) -> nn.Module:
        return (journal or Journal()).fit(data, recipe, key=key, model=model, procedure=self)

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """The logits are those of the mixed images."""
        share = self.share(batch.key)
        other = batch.key.child("other").permutation(len(batch.labels), batch.images.device)
        images = batch.images.float()
        logits = model(share * images + (1 - share) * images[other])
        ours = cross_entropy(logits, batch.labels, label_smoothing=batch.smoothing)
        theirs = cross_entropy(logits, batch.labels[other], label_smoothing=batch.smoothing)
        return share * ours + (1 - share) * theirs, logits

    def share(self, key: Key) -> float:
        """How much of an image is its own, in [0, 1], for the step of ``key``."""
        with key.child("share").ambient():
            return float(torch.distributions.Beta(self.alpha, self.alpha).sample())
