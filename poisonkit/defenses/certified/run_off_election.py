"""Run-Off Election: a second round between the two leading classes, in which every base model has a say.

Rezaei, Banihashem, Chegini and Feizi, "Run-Off Election: Improved Provable Defense against Data Poisoning
Attacks", ICML 2023, arXiv 2302.02300.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from poisonkit.defenses.certified.ensemble import RunOff
from poisonkit.defenses.certified.finite_aggregation import FiniteAggregation
from poisonkit.defenses.certified.partition import Split


@dataclass(frozen=True)
class RunOffElection(FiniteAggregation):
    """Hold a run-off between the two classes with most votes, decided by which of the two each base model prefers.

    spread  1: on the base models of DPA; more: on those of Finite Aggregation
    """

    source: ClassVar[str] = "Rezaei, Banihashem, Chegini, Feizi 2023, arXiv 2302.02300"

    spread: int = 1

    def ensemble(self, models: Mapping[int, nn.Module], num_classes: int, split: Split) -> RunOff:
        """The base models with their two rounds."""
        return RunOff(models, num_classes, self.order, split.shifts)
