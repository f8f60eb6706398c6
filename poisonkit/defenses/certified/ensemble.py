"""Base models that vote, and what no poison within a budget can do to the vote."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from poisonkit import certificates
from poisonkit.errors import require
from poisonkit.models.predict import check_weights, ensemble_logits
from poisonkit.types import Certificate, TemporalCertificate

#: What the base models of an ensemble say of images, in small integers: tensors by name
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
        for i, model in self.models.items():
            check_weights(model, f"models[{i}]")

    def top(self, images: Tensor, n: int = 1) -> Tensor:
        """The n best classes of every base model, int64 [k, M, n], row i being base model i."""
        return self.ballots(images, n)["top"].to(torch.int64)

    def ballots(self, images: Tensor, n: int = 1) -> Ballots:
        """What every base model says of uint8 [M, C, H, W], as small integers to be counted and kept.

        top  [k, M, n]: the n best classes of each, best first, ties of logits to the smaller class
        """
        require(1 <= n <= self.num_classes, "n", f"in [1, {self.num_classes}], the number of classes", n)
        models = [self.models[i] for i in range(len(self.models))]
        parts = [self.marks(scores, n) for scores in ensemble_logits(models, images)]
        return {name: torch.cat([part[name] for part in parts], 1) for name in parts[0]}

    def marks(self, logits: Tensor, n: int) -> Ballots:
        """:meth:`ballots` of the base models' logits [k, m, K]."""
        small = torch.uint8 if self.num_classes <= 256 else torch.uint16
        if n == 1:
            return {"top": logits.argmax(2, keepdim=True).to(small)}
        return {"top": logits.sort(dim=2, descending=True, stable=True).indices[..., :n].to(small)}

    def count(self, ballots: Ballots) -> Certificate:
        """The certificate of :meth:`ballots`."""
        votes = ballots["top"][..., 0]
        return Certificate(
            *certificates.finite_aggregation(votes, self.num_classes, shifts=self.shifts, order=self.order)
        )

    def count_top(self, ballots: Ballots, labels: Tensor, n: int) -> Tensor:
        """Radius int64 [M] within which ``labels`` stay among the n most-voted classes; -1 where they are not."""
        top = _best(ballots, n)
        return certificates.top_n(top, self.num_classes, labels, self.order, shifts=self.shifts)

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
        """:meth:`count_top` of uint8 [M, C, H, W]."""
        return self.count_top(self.ballots(images, n), labels, n)


@dataclass(frozen=True, eq=False)
class RunOff(Ensemble):
    """Base models that vote twice: for their favourite, then between the two favourites with most votes."""

    def marks(self, logits: Tensor, n: int) -> Ballots:
        """As of every ensemble, and above [k, m, 2, ceil(K/8)]: which classes each finalist beats, in bits."""
        found = super().marks(logits, n)
        finalists = certificates.run_off_finalists(found["top"][..., 0], self.num_classes, self.order)
        return {**found, "above": certificates.run_off_above(logits, finalists)}

    def count(self, ballots: Ballots) -> Certificate:
        first = ballots["top"][..., 0]
        counted = certificates.run_off_votes(first, ballots["above"], self.num_classes, self.shifts, self.order)
        return Certificate(*counted)


@dataclass(frozen=True, eq=False)
class HashBagged(Ensemble):
    """Base models of several partitions, one after the other: a row reaches one model of each."""

    functions: int = 1

    def count(self, ballots: Ballots) -> Certificate:
        votes = ballots["top"][..., 0]
        return Certificate(*certificates.hash_bagging(votes, self.num_classes, groups=self.functions, order=self.order))

    def count_top(self, ballots: Ballots, labels: Tensor, n: int) -> Tensor:
        top = _best(ballots, n)
        return certificates.top_n(top, self.num_classes, labels, self.order, groups=self.functions)


@dataclass(frozen=True, eq=False)
class Bagged(Ensemble):
    """Base models on bags of ``bag`` rows drawn from ``rows``: certificates hold with confidence 1 - alpha."""

    rows: int = 1
    bag: int = 1
    alpha: float = 0.001

    def count(self, ballots: Ballots) -> Certificate:
        votes = ballots["top"][..., 0]
        counted = certificates.bagging(votes, self.num_classes, self.rows, self.bag, self.alpha, self.order)
        return Certificate(*counted)

    def count_top(self, ballots: Ballots, labels: Tensor, n: int) -> Tensor:
        """0 where the label is among the n most-voted classes: no bound on more than one class is known here."""
        return super().count_top(ballots, labels, n).clamp(max=0)


@dataclass(frozen=True, eq=False)
class Temporal(Ensemble):
    """Base models of consecutive stretches of ``span`` periods, the most recent last; the radius is in periods."""

    span: int = 1

    def count(self, ballots: Ballots) -> TemporalCertificate:
        votes = ballots["top"][..., 0]
        prediction, earliness, duration = certificates.temporal(votes, self.num_classes, self.span, self.order)
        return TemporalCertificate(prediction, duration, earliness)

    def count_top(self, ballots: Ballots, labels: Tensor, n: int) -> Tensor:
        """As of disjoint partitions, where r periods are worth r + span - 1 hits."""
        radius = super().count_top(ballots, labels, n)
        return torch.where(radius < 0, radius, (radius - self.span + 1).clamp(min=0))


class LogitSum(nn.Module):
    """Networks whose logits are added: one base model made of several."""

    def __init__(self, networks: Iterable[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([network(images) for network in self.networks]).sum(0)


def _best(ballots: Ballots, n: int) -> Tensor:
    """The n best classes of every base model, [k, M, n]."""
    top = ballots["top"]
    require(1 <= n <= top.shape[2], "n", f"in [1, {top.shape[2]}], the classes that the ballots hold", n)
    return top[..., :n]
