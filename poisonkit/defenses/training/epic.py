"""EPIC: rows whose gradients lie alone in their class are dropped as the network trains.

Yu Yang, Tian Yu Liu, Baharan Mirzasoleiman, "Not All Poisons are Created Equal: Robust Training against Data
Poisoning", ICML 2022, https://arxiv.org/abs/2210.09671, Algorithm 1; and the code its authors released,
https://github.com/YuYang0901/EPIC.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate
from math import ceil
from typing import ClassVar, Literal

import torch
from torch import Tensor

from poisonkit.defenses.training.dropping import Dropping, Outputs
from poisonkit.errors import require
from poisonkit.ops.facility_location import facility_location
from poisonkit.random import Key


@dataclass(frozen=True)
class EPIC(Dropping):
    """After a warm-up, every few epochs: take each class's medoids by gradient; drop those that stand for no other row.

    Paper and released code differ in what is dropped, and ``mode`` chooses:

    ============  ===================================  =============================================================
    point         "paper"                              "reference"
    ============  ===================================  =============================================================
    similarity    a constant less the distance         exp(-distance / d)
    candidates    the rows that are left               all rows at every look; those dropped stay dropped
    warm-up       100·medoids epochs                   10 epochs; 30 where the training has 200 or more
    looks         every T epochs from the warm-up on   at the multiples of T from the warm-up on
    last look     none                                 at the last cut of the learning rate, for a Step schedule
    p             softmax of the logits                softmax of the logits less the bias of the last layer
    medoids       the share of each class, rounded up  the same, less one in random classes down to the share of all
    ============  ===================================  =============================================================

    The learning rate, the seventh place, is the recipe's. In fewer than 40 epochs the warm-up is the same share of
    them as of 40. A class never gets as many medoids as rows, so that a small one is not dropped whole.

    medoids  share of each class that are medoids: the k of EPIC-k, 0.1 to 0.3 in the paper
    proxy    what stands for a row's gradient: at the "logits" p - y; at the last layer's "input" Wᵀ(p - y), which
             section 3.5 names; at its "weights" (p - y)⊗h, of d·K numbers a row
    mode     "paper" or "reference"
    warmup   epochs before the first look; None: the mode's
    every    epochs T from one look to the next; None: a twentieth of the epochs, as in the paper from scratch (2 of 40,
             10 of 200). Transfer learning takes 1
    """

    source: ClassVar[str] = "Yang et al. 2022, arXiv 2210.09671"

    medoids: float = 0.2
    proxy: Literal["logits", "input", "weights"] = "logits"
    mode: Literal["paper", "reference"] = "paper"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.medoids <= 1, "medoids", "a share in (0, 1]", self.medoids)
        require(
            self.proxy in ("logits", "input", "weights"), "proxy", "'logits', 'input' or 'weights'", repr(self.proxy)
        )
        require(self.mode in ("paper", "reference"), "mode", "'paper' or 'reference'", repr(self.mode))

    def rounds(self, epochs: int, decay: int | None = None) -> range:
        step = self._step(epochs)
        if self.mode == "paper":
            return range(self._first(epochs, round(100 * self.medoids)), epochs, step)
        first = self._first(epochs, 10 if epochs < 200 else 30)
        return range(-(-first // step) * step, epochs if decay is None else min(epochs, decay + 1), step)

    def candidates(self, dropped_at: Tensor) -> Tensor:
        if self.mode == "paper":
            return super().candidates(dropped_at)
        return torch.arange(len(dropped_at))

    def drops(self, outputs: Outputs, key: Key) -> Tensor:
        x = self.gradients(outputs)
        counts = torch.bincount(outputs.labels, minlength=outputs.logits.shape[1]).tolist()
        return alone(x, outputs.labels, counts, self.per_class(counts, key), self.similarity)

    @property
    def similarity(self) -> str:
        """That of the medoids, by its name in ``ops.facility_location``."""
        return "l2" if self.mode == "paper" else "exp_l2"

    def gradients(self, outputs: Outputs) -> Tensor:
        """What stands for the gradient of each row: float32 [n, features]."""
        errors = outputs.errors(bias=self.mode == "paper")
        if self.proxy == "input":
            return errors @ outputs.weight
        if self.proxy == "weights":
            return (errors[:, :, None] * outputs.features[:, None]).flatten(1)
        return errors

    def per_class(self, counts: list[int], key: Key) -> list[int]:
        """How many medoids classes of so many rows get."""
        share = Fraction(str(self.medoids))
        k = [ceil(share * count) for count in counts]
        if self.mode == "reference":
            filled = [c for c, count in enumerate(counts) if count]
            excess = sum(k) - int(share * sum(counts))
            for place in key.child("trim").permutation(len(filled))[:excess].tolist():
                k[filled[place]] -= 1
        return [min(medoids, max(0, count - 1)) for medoids, count in zip(k, counts, strict=True)]


def clusters(x: Tensor, labels: Tensor, counts: list[int], k: list[int], similarity: str) -> tuple[Tensor, Tensor]:
    """Of each row of ``x`` (float32 [n, d]) the medoid it is nearest to among those of its class, and how many are.

    ``counts`` and ``k``: rows and medoids of each class. Both int64 [n]; -1 and 0 where a class has no medoids.
    """
    order = labels.argsort(stable=True)  # the op takes the rows of a class together
    found = facility_location(x[order], [0, *accumulate(counts)], k, similarity)
    if not len(found.rows):
        return torch.full_like(order, -1), torch.zeros_like(order)
    medoid, size = order[found.rows][found.nearest], found.sizes[found.nearest]
    none = found.nearest < 0
    back = order.argsort()
    return medoid.masked_fill(none, -1)[back], size.masked_fill(none, 0)[back]


def alone(x: Tensor, labels: Tensor, counts: list[int], k: list[int], similarity: str) -> Tensor:
    """Which rows are a medoid that no other row of their class is nearest to: bool [n]."""
    medoid, size = clusters(x, labels, counts, k, similarity)
    return (size == 1) & (medoid == torch.arange(len(medoid), device=medoid.device))
