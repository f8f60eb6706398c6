"""Anti-Backdoor Learning: isolate the rows that are learned first, train on the others, unlearn those.

Yige Li, Xixiang Lyu, Nodens Koren, Lingjuan Lyu, Bo Li, Xingjun Ma, "Anti-Backdoor Learning: Training Clean Models on
Poisoned Data", NeurIPS 2021, https://arxiv.org/abs/2110.11571.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import nn

from poisonkit.defenses.training.isolation import Ascent, Isolating, Shape, lowest, outcomes
from poisonkit.errors import require
from poisonkit.random import Key
from poisonkit.train import Journal, Recipe, Step
from poisonkit.train.finetuning import fine_tune
from poisonkit.types import ImageDataset


@dataclass(frozen=True)
class ABL:
    """Three trainings, one after the other: to isolate, on what is left, and to unlearn what was isolated.

    The first trains ``isolation_epochs`` on a loss kept about ``gamma``, at a constant rate and without augmentation;
    the rows of lowest loss are then isolated. The second is the recipe, from there on, on the other rows. The third
    climbs the loss of the isolated ones.

    isolation_epochs  10 in the released code, 20 in the paper
    isolation_rate    of the first training: 0.1 with SGD; for AdamW give a smaller one
    shape             "lga", local gradient ascent, "flooding", or "none"
    gamma             the loss that the first training keeps to
    ratio             share of the rows to isolate
    unlearn_epochs    of the third training: the released loop of 5 trains in 4
    unlearn_rate      of the third training
    """

    source: ClassVar[str] = "Li et al. 2021, arXiv 2110.11571"

    isolation_epochs: int = 10
    isolation_rate: float = 0.1
    shape: Shape = "lga"
    gamma: float = 0.5
    ratio: float = 0.01
    unlearn_epochs: int = 4
    unlearn_rate: float = 5e-4

    def __post_init__(self) -> None:
        require(self.isolation_epochs >= 1, "isolation_epochs", "1 or more", self.isolation_epochs)
        require(self.unlearn_epochs >= 1, "unlearn_epochs", "1 or more", self.unlearn_epochs)
        require(self.shape in ("none", "lga", "flooding"), "shape", "'none', 'lga' or 'flooding'", repr(self.shape))
        require(0 <= self.ratio < 1, "ratio", "a share in [0, 1)", self.ratio)

    def __call__(
        self,
        data: ImageDataset,
        recipe: Recipe,
        *,
        key: Key,
        model: nn.Module | None = None,
        journal: Journal | None = None,
    ) -> nn.Module:
        """``journal.notes``: the "loss" float32 [N] by which rows were isolated, and which were "flagged", bool [N]."""
        journal = journal or Journal()
        early = replace(
            recipe, epochs=self.isolation_epochs, augment=None, schedule=Step(self.isolation_rate, milestones=())
        )
        first = Isolating(early, len(data), shape=self.shape, gamma=self.gamma, key=key.child("isolation"))
        quick = fine_tune(data, first, model=model, journal=journal.stage("isolation"))
        loss = journal.once("losses", lambda: outcomes(quick, data))["loss"]
        isolated = lowest(loss, self.ratio)
        journal.notes.update(loss=loss, flagged=isolated)

        rest = data.take((~isolated).nonzero()[:, 0])
        model = journal.stage("rest").fit(rest, recipe, key=key.child("rest"), model=quick)
        late = replace(
            recipe, epochs=self.unlearn_epochs, augment=None, schedule=Step(self.unlearn_rate, milestones=())
        )
        away = data.take(isolated.nonzero()[:, 0])
        last = Ascent(late, len(away), key=key.child("unlearning"))
        return fine_tune(away, last, model=model, journal=journal.stage("unlearning"))
