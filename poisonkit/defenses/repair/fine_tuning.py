"""Fine-tuning on clean images, the simplest of the repairs and the one all others are held against.

Yuntao Liu, Yang Xie, Ankur Srivastava, "Neural Trojans", ICCD 2017, arXiv 1710.00942, section 4.2: a network trained
further on legitimate data alone forgets a part of what only triggered images taught it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from poisonkit.defenses.repair.tuning import TUNING, tune
from poisonkit.random import Key
from poisonkit.train import Journal, Recipe
from poisonkit.types import ImageDataset


@dataclass(frozen=True)
class FineTuning:
    """Train the network further on the clean images.

    recipe  how; its network is not used, since there is one
    """

    source: ClassVar[str] = "Liu, Xie, Srivastava, ICCD 2017, arXiv 1710.00942"

    recipe: Recipe = TUNING

    def __call__(self, model: nn.Module, clean: ImageDataset, *, key: Key, journal: Journal | None = None) -> nn.Module:
        """``model`` fine-tuned on ``clean``."""
        return tune(model, clean, self.recipe, key=key, journal=journal or Journal())
