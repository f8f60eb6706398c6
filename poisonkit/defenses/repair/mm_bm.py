"""Maximum-Margin Backdoor Mitigation: bounds on the ReLUs that keep clean logits and are small.

Wang, Xiang, Miller and Kesidis, "MM-BD: Post-Training Detection of Backdoor Attacks with Arbitrary Backdoor Pattern
Types Using a Maximum Margin Statistic", arXiv 2205.06900, 2022 (IEEE S&P 2024), the mitigation beside the detector.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from poisonkit.defenses.repair.bounding import Bounding, Precision, by_epochs
from poisonkit.errors import require
from poisonkit.models import predict
from poisonkit.models.clipping import ceilings
from poisonkit.random import Key
from poisonkit.train import Journal
from poisonkit.types import ImageDataset

# After the ReLU of the stem and at the end of two stages, of a residual network
_RELEASED = ("relu", "layer1.", "layer2.")


@dataclass(frozen=True)
class MMBM:
    """Bounds that keep clean logits and are small.

    Minimises the mean squared change of the clean logits plus ``weight`` times the sum of the norms of each layer's
    bounds; the weight changes to hold 95 % accuracy on the clean images.

    mode       "paper" bounds every ReLU, from the largest clean activations down; "released", as in the authors' code,
               those after the stem and at the ends of the first two stages of a residual network, from 8, and only
               with clean images that are classified right
    weight     of the norms, at first
    epochs     over the clean images, in batches of 200
    rate       of Adam
    precision  of the arithmetic of layers; "bfloat16" is faster where the hardware has it
    """

    source: ClassVar[str] = "Wang et al. 2022, arXiv 2205.06900"

    mode: Literal["paper", "released"] = "paper"
    weight: float = 0.5
    epochs: int = 50
    rate: float = 0.1
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        require(self.mode in ("paper", "released"), "mode", "'paper' or 'released'", repr(self.mode))
        require(self.weight >= 0, "weight", "0 or more", self.weight)
        require(self.epochs >= 1, "epochs", "1 or more", self.epochs)

    def __call__(self, model: nn.Module, clean: ImageDataset, *, key: Key, journal: Journal | None = None) -> nn.Module:
        """The network with bounds; ``journal`` notes them, and the weight of each epoch.

        Raises ArgumentError for a network without ReLUs, or in the released mode without those three.
        """
        released = self.mode == "released"
        if released:
            right = predict(model, clean.images) == clean.labels
            require(bool(right.any()), "clean images", "classified right, one of them at least", "none")
            clean = clean.take(right.nonzero()[:, 0])
        bounding = Bounding(
            model,
            clean,
            start=8.0 if released else None,
            rate=self.rate,
            floor=None if released else 0.0,
            precision=self.precision,
            method=self,
            key=key,
            journal=journal or Journal(),
        )
        if released:
            _only_released(bounding)

        def penalty(epoch: int, step: int) -> Tensor:
            return torch.stack([value.norm() for value in bounding.values if value.requires_grad]).sum()

        return by_epochs(
            bounding,
            bounding.preserve(),
            penalty,
            weight=self.weight,
            epochs=self.epochs,
            adjusted=(20, 30, 40),
            key=key,
        )


def _only_released(bounding: Bounding) -> None:
    """Leave only the three bounds of the authors' code, the last of each part; the others are none."""
    last = {part: bound for part in _RELEASED for bound in ceilings(bounding.network) if bound.where.startswith(part)}
    rule = "a residual network with a stem, layer1 and layer2 in the released mode"
    require(len(last) == len(_RELEASED), "model", rule, type(bounding.model).__name__, "take mode='paper'")
    for value in bounding.values:
        if not any(value is bound.value for bound in last.values()):
            value.requires_grad_(False).fill_(torch.inf)
