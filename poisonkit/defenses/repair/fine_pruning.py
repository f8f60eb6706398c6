"""Fine-Pruning: remove the channels that clean images leave dormant, then fine-tune.

Kang Liu, Brendan Dolan-Gavitt, Siddharth Garg, "Fine-Pruning: Defending Against Backdooring Attacks on Deep Neural
Networks", RAID 2018, arXiv 1805.12185, sections 3 and 4.

The channels are those of the last feature map, after its activation and its shortcut, as the last layer takes them: in
a network that pools before it, the channels of the last convolution; in others, the neurons of the last hidden layer.
A channel is pruned by the weights that read it, so the network keeps its shape and its file.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from poisonkit.defenses.repair.tuning import TUNING, tune
from poisonkit.errors import require
from poisonkit.models.features import features, head
from poisonkit.random import Key
from poisonkit.train import Batch, Cosine, Journal, Procedure, Recipe
from poisonkit.types import ImageDataset


def dormant(activations: Tensor, labels: Tensor, last: nn.Linear, tolerance: float) -> Tensor:
    """The channels to prune, the quietest first: int64 [n].

    Channels go in the order of their mean |activation| (float [M, d]), ties to the smaller index, for as long as the
    accuracy of the ``last`` layer without them stays at or above 1 - ``tolerance`` of what it was.
    """
    order = activations.abs().double().mean(0).argsort(stable=True)
    kept = activations.clone()

    def accuracy() -> float:
        return float((last(kept).argmax(1) == labels).double().mean())

    allowed = (1 - tolerance) * accuracy()
    for count, channel in enumerate(order.tolist()):
        kept[:, channel] = 0
        if accuracy() < allowed:
            return order[:count]
    return order


@dataclass(frozen=True, eq=False)
class _Pruned(Procedure):
    """Training in which the weights that read the pruned channels (``columns``, int64 [n]) stay 0."""

    columns: Tensor

    def __repr__(self) -> str:
        return f"Pruned({self.columns.tolist()})"

    def gradients(self, model: nn.Module, batch: Batch) -> None:
        slope = head(model).weight.grad
        assert slope is not None
        slope[:, self.columns] = 0


@dataclass(frozen=True)
class FinePruning:
    """Prune the dormant channels, then train the network further on the clean images.

    tolerance  the share of the accuracy on the clean images that pruning may cost
    recipe     how to fine-tune; its network is not used, since there is one
    """

    source: ClassVar[str] = "Liu, Dolan-Gavitt, Garg, RAID 2018, arXiv 1805.12185"

    tolerance: float = 0.1
    recipe: Recipe = field(default_factory=lambda: replace(TUNING, schedule=Cosine(0.01, warmup=0.1)))

    def __post_init__(self) -> None:
        require(0 <= self.tolerance < 1, "tolerance", "a share in [0, 1)", self.tolerance)

    def __call__(self, model: nn.Module, clean: ImageDataset, *, key: Key, journal: Journal | None = None) -> nn.Module:
        """``model`` pruned and fine-tuned; which channels went is noted as ``pruned``, int64 [n]."""
        journal = journal or Journal()
        pruned = deepcopy(model)
        last = head(pruned)
        found, _ = features(pruned, clean.images)
        with torch.no_grad():
            columns = dormant(found.to(last.weight.device), clean.labels.to(last.weight.device), last, self.tolerance)
            last.weight[:, columns] = 0
        journal.notes["pruned"] = columns
        journal.say(f"{len(columns)} of {last.in_features} channels pruned")
        return tune(pruned, clean, self.recipe, key=key, journal=journal, procedure=_Pruned(columns))
