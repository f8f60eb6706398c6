"""RDM-DC: distribution matching with calibrated means, into which a small share of poisoned rows does not get.

Zheng and Li, "RDM-DC: Poisoning Resilient Dataset Condensation with Robust Distribution Matching", UAI 2023,
https://proceedings.mlr.press/v216/zheng23a.html, Algorithms 3 to 5.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from poisonkit.defenses.condense.dm import DM
from poisonkit.defenses.condense.means import Calibrated, RobustMean


@dataclass(frozen=True)
class RdmDc(DM):
    """Distribution matching whose real means leave out the rows farthest along their top direction of variance.

    mean  the calibrated one, with the iterations of its power method

    All else is as for :class:`poisonkit.defenses.condense.DM`. The poison has to dominate the variance of a class:
    where perturbations are small, or few rows are poisoned, the top direction is a natural one, clean rows are dropped
    and the poison stays. The notes top_share and top_gap say how far that direction stands out.
    """

    source: ClassVar[str] = "Zheng and Li 2023, https://proceedings.mlr.press/v216/zheng23a.html"

    mean: RobustMean = field(default_factory=Calibrated)
