"""Maximum-Margin Overfitting Mitigation: bounds on the ReLUs that classify a small balanced set better.

Wang, Miller and Kesidis, "Post-Training Overfitting Mitigation in DNN Classifiers" (first "Maximum Margin Based
Activation Clipping for Post-Training Overfitting Mitigation in DNN Classifiers"), 2023, arXiv 2309.16827, section 3.2,
equation 5: against the bias of unbalanced classes and of over-training, not against backdoors. No code was published.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from poisonkit.defenses.margins import Ascent
from poisonkit.defenses.repair.bounding import Bounding, Precision, alternate
from poisonkit.errors import require
from poisonkit.random import Key
from poisonkit.train import Journal
from poisonkit.types import ImageDataset


@dataclass(frozen=True)
class MMOM:
    """Bounds that classify a small balanced set better and lower the largest margins.

    Minimises the mean cross entropy of the clean images plus ``weight`` times the mean largest margin, in turns:
    maximisers climb on the bounded network, then the bounds take a step. Classes count alike, also where they have not
    as many clean images as each other.

    weight      λ, of the margins (0 to 1e-4 do the same in the paper's table 3; 0 takes no maximisers at all)
    iterations  at most so many
    tolerance   an end where the loss has changed by less, three times running
    starts      J, maximisers of each class; None for as many as it has clean images
    ascent      of the maximisers between two steps; the paper says gradient ascent
    rate        of Adam
    precision   of the arithmetic of layers; "bfloat16" is faster where the hardware has it
    """

    source: ClassVar[str] = "Wang, Miller and Kesidis 2023, arXiv 2309.16827"

    weight: float = 1e-5
    iterations: int = 300
    tolerance: float = 1e-4
    starts: int | None = None
    ascent: Ascent = field(default_factory=Ascent)
    rate: float = 0.1
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        require(self.weight >= 0, "weight", "0 or more", self.weight)
        require(self.iterations >= 1, "iterations", "1 or more", self.iterations)
        require(self.starts is None or self.starts >= 1, "starts", "1 or more, or none", self.starts)

    def __call__(self, model: nn.Module, clean: ImageDataset, *, key: Key, journal: Journal | None = None) -> nn.Module:
        """The network with bounds; ``journal`` notes them, and the loss of each iteration.

        Raises ArgumentError for a network without ReLUs, or where a class has no clean image.
        """
        counts = torch.bincount(clean.labels.cpu(), minlength=clean.num_classes)
        require(bool((counts > 0).all()), "clean images", "1 or more of each class", counts.tolist())
        bounding = Bounding(
            model,
            clean,
            start=None,
            rate=self.rate,
            floor=0.0,
            precision=self.precision,
            method=self,
            key=key,
            journal=journal or Journal(),
        )
        labels, shares = clean.labels.to(bounding.device), (len(clean) / clean.num_classes / counts).to(bounding.device)

        def fit(scores: Tensor, rows: Tensor) -> Tensor:
            wanted = labels[rows.to(bounding.device)]
            return shares[wanted] * cross_entropy(scores, wanted, reduction="none")

        return alternate(
            bounding,
            fit,
            weight=self.weight,
            iterations=self.iterations,
            tolerance=self.tolerance,
            starts=self.starts,
            ascent=self.ascent,
            key=key,
        )
