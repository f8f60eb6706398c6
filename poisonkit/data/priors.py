"""Class priors: the imbalanced subsets of a balanced data set on which long-tailed recognition is measured.

Kaidi Cao, Colin Wei, Adrien Gaidon, Nikos Arechiga, Tengyu Ma, "Learning Imbalanced Datasets with Label-Distribution-
Aware Margin Loss", NeurIPS 2019, arXiv 1906.07413, section 4.1. Class i of C keeps, of n rows,

    long tail   ⌊n · γ^(-i / (C-1))⌋
    step        n for i < C/2, else ⌊n / γ⌋

where γ is the ratio between the largest and the smallest class.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from poisonkit.errors import require
from poisonkit.random import Key
from poisonkit.types import ImageDataset


@dataclass(frozen=True)
class Prior:
    """How many rows each class keeps.

    shape  "lt", the long tail; or "step"
    ratio  γ, how much larger the largest class is than the smallest
    """

    shape: Literal["lt", "step"] = "lt"
    ratio: int = 100

    def __post_init__(self) -> None:
        require(self.shape in ("lt", "step"), "shape", "'lt' or 'step'", repr(self.shape))
        require(self.ratio >= 1, "ratio", "1 or more", self.ratio)

    def counts(self, rows: int, classes: int) -> list[int]:
        """The size of each of ``classes`` classes, of ``rows`` rows each before; in integers, so exact."""
        if self.shape == "step":
            return [rows if 2 * i < classes else rows // self.ratio for i in range(classes)]
        last = max(classes - 1, 1)
        return [_largest(last, rows**last // self.ratio**i, rows) for i in range(classes)]

    def __call__(self, data: ImageDataset, *, key: Key) -> ImageDataset:
        """The subset of ``data``, in its order. What a class keeps is a function of the key and the class alone.

        The rows of a class are those that come first in one random order, so a steeper prior's are among a flatter
        one's. The n of the counts is the size of the smallest class of ``data``.
        """
        smallest = int(torch.bincount(data.labels, minlength=data.num_classes).min())
        require(smallest > 0, "data", "of every class", "a class without rows")
        kept = []
        for label, count in enumerate(self.counts(smallest, data.num_classes)):
            rows = (data.labels == label).nonzero()[:, 0]
            kept.append(rows[key.child("class", label).permutation(len(rows), data.device)[:count]])
        return data.take(torch.cat(kept).sort().values)


def _largest(power: int, bound: int, most: int) -> int:
    """The largest m in [0, most] with m^power <= bound."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if middle**power <= bound else (low, middle - 1)
    return low


# The four of the literature
PRIORS = {f"{shape}-{ratio}": Prior(shape, ratio) for shape in ("lt", "step") for ratio in (100, 10)}
