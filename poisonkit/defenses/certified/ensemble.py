"""Base models that vote, and what no poison within a budget can do to the vote."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from poisonkit import certificates
from poisonkit.errors import require
from poisonkit.models.predict import ensemble_logits
from poisonkit.types import Certificate

Ballots = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Ensemble:
    """Base models by id, their plurality vote, and its certificate.

    models       one module for each id 0..n-1
    num_classes  K
    order        all K classes, the one that wins ties first; None for 0, 1, ..., K-1
    shifts       bucket h of the rows feeds the models (h + s) mod n for every shift s
    """

    models: Mapping[int, nn.Module]
    num_classes: int
    order: tuple[int, ...] | None = None
    shifts: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        ids = sorted(self.models)
        require(
            ids == list(range(len(ids))) and len(ids) > 0,
            "models",
            "keyed by every id 0..n-1",
            ids,
            "train the missing base models first",
        )

    def top(self, images: Tensor, n: int = 1) -> Tensor:
        """The n best classes of every base model, int64 [k, M, n], row i being base model i."""
        return self.ballots(images, n)["top"].to(torch.int64)

    def ballots(self, images: Tensor, n: int = 1) -> Ballots:
        """What every base model says of uint8 [M, C, H, W], as small integers to be counted and kept.

        top  [k, M, n]: the n best classes of each, best first, ties of logits to the smaller class
        """
        small = torch.uint8 if self.num_classes <= 256 else torch.uint16
        require(1 <= n <= self.num_classes, "n", f"in [1, {self.num_classes}], the number of classes", n)
        models = [self.models[i] for i in range(len(self.models))]
        parts = [_best(scores, n).to(small) for scores in ensemble_logits(models, images)]
        return {"top": torch.cat(parts, 1)}

    def count(self, ballots: Ballots) -> Certificate:
        """The certificate of :meth:`ballots`."""
        return Certificate(*certificates.dpa(ballots["top"][..., 0], self.num_classes, self.order))

    def certify(self, images: Tensor) -> Certificate:
        """Prediction and certified radius of uint8 [M, C, H, W]."""
        return self.count(self.ballots(images))

    def predict(self, images: Tensor) -> Tensor:
        """The class that wins the vote: uint8 [M, C, H, W] -> int64 [M]."""
        return self.certify(images).prediction

    def guesses(self, images: Tensor, n: int) -> Tensor:
        """The n most-voted classes, best first, when every base model votes for its n best: int64 [M, n]."""
        return certificates.guess_set(self.top(images, n), self.num_classes, self.order)

    def certify_top(self, images: Tensor, labels: Tensor, n: int) -> Tensor:
        """Radius within which ``labels`` int64 [M] stay among the n most-voted classes; -1 where they are not."""
        return certificates.top_n(self.top(images, n), self.num_classes, labels, self.order)


class LogitSum(nn.Module):
    """Networks whose logits are added: one base model made of several."""

    def __init__(self, networks: Iterable[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([network(images) for network in self.networks]).sum(0)


def _best(scores: Tensor, n: int) -> Tensor:
    """Logits [k, m, K] to the n best classes [k, m, n], best first, ties to the smaller class."""
    if n == 1:
        return scores.argmax(2, keepdim=True)
    return scores.sort(dim=2, descending=True, stable=True).indices[..., :n]
