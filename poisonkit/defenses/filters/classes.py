"""What filters share: the rows of a class, and their principal components."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from poisonkit.errors import require


def check(features: Tensor, labels: Tensor) -> None:
    """Raise ArgumentError unless ``features`` are finite floats [N, d] and ``labels`` int64 [N], on one device."""
    require(features.ndim == 2, "features", "of shape [N, d]", list(features.shape))
    require(features.is_floating_point(), "features", "floats", features.dtype)
    require(labels.dtype == torch.int64, "labels", "int64", labels.dtype)
    rows = f"of shape [{len(features)}], one per row of features"
    require(labels.shape == features.shape[:1], "labels", rows, list(labels.shape))
    require(labels.device == features.device, "labels", f"on {features.device}, as the features", labels.device)
    require(len(labels) == 0 or int(labels.min()) >= 0, "labels", "0 or more", "negative ones")
    require(bool(features.isfinite().all()), "features", "finite", "inf or nan")


def by_class(features: Tensor, labels: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Each class that has rows, those rows (int64 [n]), and their features about their mean (float64 [n, d])."""
    check(features, labels)
    sizes = labels.bincount().tolist()
    for label, rows in enumerate(torch.split(labels.argsort(stable=True), sizes)):
        if not len(rows):
            continue
        own = features[rows].double()
        yield label, rows, own - own.mean(0)


def principal(centred: Tensor, count: int) -> Tensor:
    """The first ``count`` principal components (all, if they are fewer) of rows about their mean, largest first.

    float64 [n, d] to [n, count]: the projections of the rows on their right singular vectors.
    """
    left, values, _ = torch.linalg.svd(centred, full_matrices=False)
    found: Tensor = left * values
    return found[:, :count]
