"""Activation clustering: in a poisoned class, the features of poisoned and clean rows fall apart in two clusters.

Chen, Carvalho, Baracaldo, Ludwig, Edwards, Lee, Molloy and Srivastava, "Detecting Backdoor Attacks on Deep Neural
Networks by Activation Clustering", 2018, https://arxiv.org/abs/1811.03728. Its third way to judge a cluster, to train
anew without it and see what that network calls it, needs more than features and is not here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from poisonkit.defenses.filters.classes import by_class, principal
from poisonkit.errors import require
from poisonkit.random import Key
from poisonkit.types import Detection

_RESTARTS, _STEPS = 10, 300  # as scikit-learn's KMeans
_CHUNK = 1 << 24  # distances at once


@dataclass(frozen=True)
class ActivationClustering:
    """Two clusters in each class, of which the smaller one is flagged where it looks like poison.

    judge       "size": where it has less than ``size`` of the class; "silhouette": where the clusters are apart, a mean
                silhouette above ``silhouette``; "smaller": always, as Geiping et al. (arXiv 2102.13624) filter
    reduce      "ica": ``dims`` independent components; "pca": as many principal ones; "none": the features
    size        of the smaller cluster, below which it is poison
    silhouette  above which the smaller cluster is poison
    """

    source: ClassVar[str] = "Chen et al. 2018, arXiv 1811.03728"

    judge: Literal["size", "silhouette", "smaller"] = "size"
    reduce: Literal["ica", "pca", "none"] = "ica"
    dims: int = 10
    size: float = 0.35
    silhouette: float = 0.1

    def __post_init__(self) -> None:
        require(self.judge in ("size", "silhouette", "smaller"), "judge", "size, silhouette or smaller", self.judge)
        require(self.reduce in ("ica", "pca", "none"), "reduce", "ica, pca or none", self.reduce)
        require(self.dims >= 1, "dims", "1 or more", self.dims)

    def __call__(self, features: Tensor, labels: Tensor, *, key: Key) -> Detection:
        """A row's score is the share of its class that is not in its cluster.

        A class of 2·dims rows or fewer is left alone: so few points fall in two clusters anyhow.
        """
        score = torch.zeros(len(labels), dtype=torch.float64, device=features.device)
        flagged = torch.zeros_like(score, dtype=torch.bool)
        for label, rows, centred in by_class(features, labels):
            if len(rows) <= 2 * self.dims:
                continue
            points = self._reduced(centred)
            second = two_means(points, key.child("class", label))
            share = float(second.double().mean())
            score[rows] = (second.double() - share).abs()
            smaller = second if share < 0.5 else ~second
            flagged[rows] = smaller & self._poison(points, smaller)
        return Detection(flagged, score)

    def _reduced(self, centred: Tensor) -> Tensor:
        if self.reduce == "none":
            return centred
        found = principal(centred, self.dims)
        if self.reduce == "pca":
            return found
        # Independent components are whitened principal ones, rotated. Distances, and so the clusters, are the same.
        scale = found.square().mean(0).sqrt()
        real = scale > 1e-6 * scale[0]
        return found[:, real] / scale[real]

    def _poison(self, points: Tensor, smaller: Tensor) -> bool:
        share = float(smaller.double().mean())
        if self.judge == "size":
            return share < self.size
        if self.judge == "smaller":
            return share < 0.5
        return share > 0 and silhouette(points, smaller) > self.silhouette


def two_means(points: Tensor, key: Key) -> Tensor:
    """Which of ``points`` (float64 [n, d], about their mean) lie in the second of two clusters: bool [n].

    Lloyd's k-means from ten starts of k-means++ (Arthur and Vassilvitskii 2007) at once; the best is taken.
    """
    draws = torch.rand(2, _RESTARTS, generator=key.generator(), dtype=torch.float64).to(points.device)
    first = points[(draws[0] * len(points)).long()]
    nearness = torch.cdist(points, first, compute_mode="donot_use_mm_for_euclid_dist").square().cumsum(0).T.contiguous()
    drawn = torch.searchsorted(nearness, (draws[1] * nearness[:, -1])[:, None], right=True)[:, 0]
    centres = torch.stack([first, points[drawn.clamp(max=len(points) - 1)]])
    sides = torch.zeros(len(points), _RESTARTS, dtype=torch.bool, device=points.device)
    for _ in range(_STEPS):
        middle = centres.square().sum(2).diff(dim=0) / 2
        before, sides = sides, points @ (centres[1] - centres[0]).T > middle
        if torch.equal(before, sides):
            break
        parts = torch.stack([~sides, sides]).double()
        counts = parts.sum(1)
        centres = parts.transpose(1, 2) @ points / counts.clamp(min=1)[..., None]
    # The points lie about their mean: what the clusters explain is the spread of their centres
    counts = torch.stack([~sides, sides]).sum(1)
    return sides[:, (counts * centres.square().sum(2)).sum(0).argmax()]


def silhouette(points: Tensor, second: Tensor) -> float:
    """The mean over ``points`` [n, d] of (b - a) / max(a, b), for the mean distances a to the rest of the own cluster
    and b to the other; 0 for a point that is alone. Rousseeuw 1987, doi:10.1016/0377-0427(87)90125-7."""
    parts = torch.stack([~second, second], 1).to(points)
    sizes = parts.sum(0)
    total = 0.0
    rows = max(1, _CHUNK // len(points))
    for some, mine in zip(torch.split(points, rows), torch.split(parts, rows), strict=True):
        sums = torch.cdist(some, points) @ parts
        own = (sums * mine).sum(1) / ((mine @ sizes) - 1).clamp(min=1)
        other = (sums * (1 - mine)).sum(1) / ((1 - mine) @ sizes)
        worth = (other - own) / torch.maximum(own, other).clamp(min=1e-300)
        total += float(worth[mine @ sizes > 1].sum())
    return total / len(points)
