"""Spectral signatures: rows that lie far out along the direction in which the features of their class vary most.

Tran, Li and Madry, "Spectral Signatures in Backdoor Attacks", NeurIPS 2018, https://arxiv.org/abs/1811.00636,
Algorithm 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import torch
from torch import Tensor

from poisonkit.defenses.filters.classes import by_class, principal
from poisonkit.errors import require
from poisonkit.random import Key
from poisonkit.types import Detection


@dataclass(frozen=True)
class SpectralSignatures:
    """Per class, the rows with the largest squared projection on the top right singular vector of its features.

    rate      the largest share of a class that may be poisoned: the paper's ε over the rows of the class
    multiple  of it that is flagged, in every class
    """

    source: ClassVar[str] = "Tran et al. 2018, arXiv 1811.00636"

    rate: float = 0.1
    multiple: float = 1.5

    def __post_init__(self) -> None:
        require(0 <= self.rate <= 1, "rate", "a share in [0, 1]", self.rate)
        least = "0 or more, and less than 1 / rate: it would flag whole classes"
        require(self.multiple >= 0 and self._share < 1, "multiple", least, self.multiple)

    @property
    def _share(self) -> Fraction:
        return Fraction(str(self.rate)) * Fraction(str(self.multiple))

    def __call__(self, features: Tensor, labels: Tensor, *, key: Key) -> Detection:
        """Flags int(multiple · rate · n) of the n rows of each class; nothing is drawn at random.

        The scores of different classes are not on one scale.
        """
        score = torch.zeros(len(labels), dtype=torch.float64, device=features.device)
        flagged = torch.zeros_like(score, dtype=torch.bool)
        for _, rows, centred in by_class(features, labels):
            score[rows] = principal(centred, 1)[:, 0].square()
            worst = score[rows].argsort(descending=True, stable=True)
            flagged[rows[worst[: int(self._share * len(rows))]]] = True
        return Detection(flagged, score)
