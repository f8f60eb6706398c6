"""Deep k-NN: rows whose label is not that of the rows around them in feature space.

Peri, Gupta, Huang, Fowl, Zhu, Feizi, Goldstein and Dickerson, "Deep k-NN Defense against Clean-label Data Poisoning
Attacks", ECCV workshops 2020, https://arxiv.org/abs/1909.13374.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar, Literal

import torch
from torch import Tensor

from poisonkit.defenses.filters.classes import check
from poisonkit.errors import require
from poisonkit.random import Key
from poisonkit.types import Detection

_CHUNK = 1 << 25  # distances at once


@dataclass(frozen=True)
class DeepKNN:
    """Rows that their k nearest neighbours outvote.

    share     k as a share of all rows; the paper wants it above twice the poisoned share, below that of a class
    vote      "plurality": a row stays if no other class has more votes than its own; "majority": if its own has half of
              them, as Geiping et al. (arXiv 2102.13624) filter
    balanced  whether a vote counts one over the size of its class, as if small classes were repeated until all are
              equal
    """

    source: ClassVar[str] = "Peri et al. 2020, arXiv 1909.13374"

    share: float = 0.02
    vote: Literal["plurality", "majority"] = "plurality"
    balanced: bool = True

    def __post_init__(self) -> None:
        require(0 < self.share < 1, "share", "in (0, 1)", self.share)
        require(self.vote in ("plurality", "majority"), "vote", "plurality or majority", self.vote)

    def __call__(self, features: Tensor, labels: Tensor, *, key: Key) -> Detection:
        """A row's score is the share of votes that its own label does not get; nothing is drawn at random."""
        check(features, labels)
        n = len(labels)
        k = math.ceil(Fraction(str(self.share)) * n)
        require(k < n or n == 0, "share", f"for fewer neighbours than the other {n - 1} rows", f"{k} neighbours")
        # About their mean, so that the squares are small and the float32 products below lose little
        points = (features - features.mean(0)).float()
        squares = points.square().sum(1)
        sizes = labels.bincount(minlength=1)
        own, most = torch.empty(2, n, dtype=torch.float64, device=features.device)
        for rows in torch.split(torch.arange(n, device=features.device), max(1, _CHUNK // max(1, n))):
            distances = torch.addmm(squares, points[rows], points.T, alpha=-2)  # less the row's own square
            distances[torch.arange(len(rows), device=rows.device), rows] = torch.inf
            near = distances.topk(k, largest=False, sorted=False).indices
            votes = torch.zeros(len(rows), len(sizes), dtype=torch.float64, device=features.device)
            votes.scatter_add_(1, labels[near], torch.ones_like(near, dtype=torch.float64))
            if self.balanced:
                votes /= sizes.clamp(min=1)
            mine = votes.gather(1, labels[rows, None])[:, 0]
            own[rows] = mine / (total := votes.sum(1))
            most[rows] = votes.amax(1) / total
        return Detection(own < (0.5 if self.vote == "majority" else most), 1 - own)
