"""The direct attack: copies of the image that is to be misclassified, with the wrong label.

Zheng and Li, "RDM-DC: Poisoning Resilient Dataset Condensation with Robust Distribution Matching", UAI 2023,
https://proceedings.mlr.press/v216/zheng23a.html, section 5.3. It is the strongest poison there is for one image, and
what a person would find at a glance: a measure of defenses, not of attackers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from poisonkit.attacks.crafting import Fit, State
from poisonkit.attacks.targeted import Case, KnownImages
from poisonkit.random import Key
from poisonkit.train import Journal
from poisonkit.types import Budget, ImageDataset


@dataclass(frozen=True)
class Direct(KnownImages):
    """Rows of the class ``target`` become copies of the victims and keep their label. It takes no bound on pixels.

    All of them are of one class: a budget of 1 % of ten equal classes is a tenth of that class.

    count  how many victims there are, which take turns
    """

    source: ClassVar[str] = "Zheng and Li 2023, https://proceedings.mlr.press/v216/zheng23a.html"

    def solve(self, what: Case, data: ImageDataset, budget: Budget, key: Key, fit: Fit, journal: Journal) -> State:
        turns = torch.arange(len(what.rows), device=data.device) % self.count
        return what.state(what.victims[turns].float(), [])
