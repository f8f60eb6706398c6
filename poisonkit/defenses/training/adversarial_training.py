"""Adversarial training: a network that withstands perturbed images also withstands some perturbed training images.

Madry, Makelov, Schmidt, Tsipras and Vladu, "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018,
https://arxiv.org/abs/1706.06083. Against poison: Geiping et al., https://arxiv.org/abs/2102.13624, and Tao et al.,
"Better Safe Than Sorry: Preventing Delusive Adversaries with Adversarial Training", https://arxiv.org/abs/2102.04716.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from poisonkit.random import Key
from poisonkit.train import Adversarial, Journal, Recipe
from poisonkit.types import ImageDataset


@dataclass(frozen=True)
class AdversarialTraining:
    """Trains on images that projected gradient descent makes hard for the network as it is.

    eps    largest perturbation, in pixel steps
    step   of the descent, of which there are ``steps``
    """

    source: ClassVar[str] = "Madry et al. 2018, arXiv 1706.06083"

    eps: float = 8.0
    step: float = 2.0
    steps: int = 7

    def __call__(
        self,
        data: ImageDataset,
        recipe: Recipe,
        *,
        key: Key,
        model: nn.Module | None = None,
        journal: Journal | None = None,
    ) -> nn.Module:
        """Takes about 1 + ``steps`` times as long as ordinary training."""
        hard = Adversarial(self.eps, self.step, self.steps)
        return (journal or Journal()).fit(data, recipe, key=key, model=model, procedure=hard)
