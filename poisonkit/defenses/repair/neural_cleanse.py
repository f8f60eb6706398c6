"""Neural Cleanse's mitigation: train on clean images that carry the reversed trigger under their own labels.

Bolun Wang, Yuanshun Yao, Shawn Shan, Huiying Li, Bimal Viswanath, Haitao Zheng, Ben Y. Zhao, "Neural Cleanse:
Identifying and Mitigating Backdoor Attacks in Neural Networks", IEEE S&P 2019, doi:10.1109/SP.2019.00031, section 6.3.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from poisonkit.defenses.detectors.neural_cleanse import NeuralCleanse, stamped
from poisonkit.defenses.repair.tuning import TUNING, tune
from poisonkit.errors import require
from poisonkit.random import Key
from poisonkit.train import Batch, Journal, Procedure, Recipe
from poisonkit.train.checkpoints import digest
from poisonkit.types import ImageDataset


@dataclass(frozen=True, eq=False)
class _Unlearning(Procedure):
    """Training in which a ``share`` of the images carry one of the triggers.

    masks     float32 [G, 1, H, W] in [0, 1]
    patterns  float32 [G, C, H, W] in 0..255
    """

    masks: Tensor
    patterns: Tensor
    share: float

    def __repr__(self) -> str:
        return f"Unlearning({self.share}, {digest({'masks': self.masks, 'patterns': self.patterns})})"

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        images = batch.images.float()
        home, triggers = images.device, len(self.masks)
        [drawn] = batch.key.child("triggers").below((triggers,) * len(images), torch.zeros(1, dtype=torch.int64))
        carried = stamped(images, self.masks.to(home)[drawn.to(home)], self.patterns.to(home)[drawn.to(home)])
        carries = torch.arange(len(images), device=home) < round(self.share * len(images))
        logits = model(torch.where(carries[:, None, None, None], carried, images))
        return cross_entropy(logits, batch.labels, label_smoothing=batch.smoothing), logits


@dataclass(frozen=True)
class NeuralCleanseMitigation:
    """Reverse the triggers of the classes that Neural Cleanse flags, and unlearn them.

    detector  how they are found
    share     of the images of a step that carry one of them
    recipe    how to fine-tune; its network is not used, since there is one
    """

    source: ClassVar[str] = "Wang et al., IEEE S&P 2019, doi:10.1109/SP.2019.00031"

    detector: NeuralCleanse = field(default_factory=NeuralCleanse)
    share: float = 0.2
    recipe: Recipe = TUNING

    def __post_init__(self) -> None:
        require(0 < self.share <= 1, "share", "a fraction in (0, 1]", self.share)

    def __call__(self, model: nn.Module, clean: ImageDataset, *, key: Key, journal: Journal | None = None) -> nn.Module:
        """The network repaired; an unchanged copy where no class is flagged. The notes are the detector's."""
        journal = journal or Journal()
        detection = self.detector(model, clean, key=key.child("detector"), journal=journal.stage("detector"))
        flagged = detection.flagged.to(journal.notes["masks"].device)
        if not flagged.any():
            journal.say("no class is flagged, so there is nothing to unlearn")
            return deepcopy(model).eval()
        unlearning = _Unlearning(journal.notes["masks"][flagged], journal.notes["patterns"][flagged], self.share)
        return tune(model, clean, self.recipe, key=key.child("unlearn"), journal=journal, procedure=unlearning)
