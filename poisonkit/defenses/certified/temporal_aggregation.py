"""Temporal Aggregation: base models on periods of time, so that poison is bounded by when it could come in.

Wang and Feizi, "Temporal Robustness against Data Poisoning", NeurIPS 2023, arXiv 2302.03684.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from poisonkit.defenses.certified.aggregation import Aggregation
from poisonkit.defenses.certified.ensemble import Temporal
from poisonkit.defenses.certified.partition import Split
from poisonkit.errors import require
from poisonkit.random import Key
from poisonkit.types import ImageDataset


@dataclass(frozen=True)
class TemporalAggregation(Aggregation):
    """Train a base model on each of the most recent stretches of time and let them vote.

    The attacker may do anything to the rows of the periods that poison came in, but cannot move rows to
    other periods: when a row arrived is taken as given. Where it is known, give it to ``split``. Without it periods are
    cut by row number, and certificates are about rows replaced in place: a row more or less moves the cuts.

    partitions  how many base models, one ending with each of the most recent periods
    span        how many consecutive periods a base model sees
    """

    source: ClassVar[str] = "Wang and Feizi 2023, arXiv 2302.03684"
    budget: ClassVar[str] = "consecutive periods poisoned (which rows arrived in one being given)"

    span: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.span >= 1, "span", "1 period or more", self.span)

    def split(self, data: ImageDataset, key: Key, periods: Tensor | None = None) -> Split:
        """Rows by period, the last base model seeing the most recent ones.

        periods  int64 [N], the period each row arrived in, the most recent ``partitions + span - 1`` of them being
                 used; without it rows are taken to have arrived in their order, and are cut into that many
                 equal periods
        """
        count = self.partitions + self.span - 1
        if periods is None:
            periods = torch.arange(len(data)) * count // max(1, len(data))
        require(periods.shape == data.labels.shape, "periods", f"of shape [{len(data)}], one per row", periods.shape)
        last = int(periods.max()) if len(data) else 0
        ends = range(last - self.partitions + 1, last + 1)
        rows = (torch.nonzero((periods > end - self.span) & (periods <= end))[:, 0] for end in ends)
        return Split(tuple(rows), len(data))

    def ensemble(self, models: Mapping[int, nn.Module], num_classes: int, split: Split) -> Temporal:
        """Plurality; ties to the class that comes first in ``order``."""
        return Temporal(models, num_classes, self.order, span=self.span)
