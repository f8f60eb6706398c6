"""The direct attack: copies of the image that is to be misclassified, with the wrong label.

Zheng and Li, "RDM-DC: Poisoning Resilient Dataset Condensation with Robust Distribution Matching", UAI 2023,
https://proceedings.mlr.press/v216/zheng23a.html, section 5.3. It is the strongest poison there is for one image, and
what a person would find at a glance: a measure of defenses, not of attackers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from poisonkit.attacks.crafting import State
from poisonkit.attacks.targeted import case, poisoned
from poisonkit.random import Key
from poisonkit.train import Journal
from poisonkit.types import Budget, ImageDataset, Poison


@dataclass(frozen=True)
class Direct:
    """Rows of the class ``target`` become copies of the victims and keep their label. It takes no bound on pixels.

    All of them are of one class: a budget of 1 % of ten equal classes is a tenth of that class.

    target        the class the attacker wants, of which the poisoned rows are
    victim_class  of the images to be misclassified; None for any but the target
    count         how many of them, which take turns
    """

    source: ClassVar[str] = "Zheng and Li 2023, https://proceedings.mlr.press/v216/zheng23a.html"
    needs_victims: ClassVar[bool] = True

    target: int = 0
    victim_class: int | None = None
    count: int = 1

    @property
    def eps(self) -> None:
        """There is no bound."""
        return

    def craft(
        self,
        data: ImageDataset,
        budget: Budget,
        *,
        key: Key,
        victims: ImageDataset | None = None,
        rows: Tensor | None = None,
        journal: Journal | None = None,
    ) -> State:
        """The poison, as tensors."""
        what = case(self, data, budget, victims, key, rows)
        turns = torch.arange(len(what.rows), device=data.device) % self.count
        return what.state(what.victims[turns].float(), [])

    def __call__(
        self,
        data: ImageDataset,
        budget: Budget,
        *,
        key: Key,
        victims: ImageDataset | None = None,
        rows: Tensor | None = None,
        state: State | None = None,
    ) -> Poison:
        """Poison as many rows as ``budget`` allows, or ``rows``; ArgumentError for a budget with ``eps``."""
        state = state or self.craft(data, budget, key=key, victims=victims, rows=rows)
        return poisoned(data, budget, state, self)
