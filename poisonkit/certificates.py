"""Integer certificate arithmetic: votes in, radii out. Knows no model and no data.

A *hit* on a partition lets the attacker choose the vote of its base model freely. Inserting or
deleting one training row hits one partition; replacing a row, or changing its label where the label
is hashed, hits two; changing a label where only the image is hashed hits one. A radius r says that no
r hits change the prediction, for any class order that was fixed before the data was seen.

All arithmetic is in integers: in floats, equation (1) of the paper is one too low for votes as plain
as [7, 3].
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from poisonkit.errors import require

# All classes, the one that wins ties first; None for 0, 1, ..., K-1
Order = Tensor | Sequence[int] | None

# Rows of the [rows, K] count table held at once: 4 M int32 counts, 16 MB.
_CHUNK = 1 << 22


def dpa(votes: Tensor, num_classes: int, order: Order = None) -> tuple[Tensor, Tensor]:
    """Plurality vote of Deep Partition Aggregation and its certificate.

    votes        integer [k, M]: the class each of k base models gives each of M inputs
    num_classes  K, at least 2
    order        all K classes, the one that wins ties first; None for 0, 1, ..., K-1

    Returns (prediction int64 [M], radius int64 [M]):
    radius = floor((n_y - max over c != y of (n_c + [c before y])) / 2).

    Levine and Feizi, ICLR 2021; Wang and Feizi, arXiv 2306.16415, Theorem 2.1. Raises ArgumentError
    for votes outside [0, K) or an order that is not a permutation.
    """
    require(votes.ndim == 2, "votes", "of shape [k, M]", list(votes.shape))
    prediction, radius = [], []
    for count, order_ in _counts(votes[:, :, None], num_classes, order):
        first = _beats(count).argmax(1)
        prediction.append(order_[first])
        radius.append((_gap(count, first, 1)) // 2)
    return torch.cat(prediction), torch.cat(radius)


def top_n(top: Tensor, num_classes: int, label: Tensor, order: Order = None) -> Tensor:
    """How many hits cannot push ``label`` out of the n most-voted classes.

    top    integer [k, M, n]: the n best classes of each base model, each worth one vote
    label  int64 [M]

    Returns radius int64 [M], -1 where the label is not among the n most-voted classes, so that the
    share of radius >= r is the top-n accuracy certified at r. With q the n-th largest of
    n_c + [c before label] over c != label, the radius is floor((n_label - q) / 2); n = 1 is :func:`dpa`.
    Raises ArgumentError for ids outside [0, K), repeated within a model's n, or n >= K.
    """
    _check_top(top, num_classes)
    require(label.shape == top.shape[1:2], "label", f"of shape [{top.shape[1]}]", list(label.shape))
    radius, start = [], 0
    for count, order_ in _counts(top, num_classes, order):
        mine = _rank(order_)[label[start : start + len(count)].to(torch.int64)]
        radius.append((_gap(count, mine, top.shape[2]) // 2).clamp(min=-1))
        start += len(count)
    return torch.cat(radius)


def guess_set(top: Tensor, num_classes: int, order: Order = None) -> Tensor:
    """The n most-voted classes of each input, int64 [M, n], best first; arguments as in :func:`top_n`."""
    _check_top(top, num_classes)
    guesses = [
        order_[_beats(count).topk(top.shape[2], dim=1).indices] for count, order_ in _counts(top, num_classes, order)
    ]
    return torch.cat(guesses)


def class_order(num_classes: int, order: Order = None) -> Tensor:
    """``order``, or 0, 1, ..., K-1, as int64 [K]. Raises ArgumentError where it is no permutation of K >= 2 classes."""
    require(num_classes >= 2, "num_classes", "at least 2", num_classes)
    classes = torch.arange(num_classes)
    order = classes if order is None else torch.as_tensor(order).cpu().to(torch.int64)
    require(
        order.shape == classes.shape and bool((order.sort().values == classes).all()),
        "order",
        f"a permutation of 0..{num_classes - 1}",
        order.tolist() if order.numel() <= 16 else f"{order.numel()} entries",
    )
    return order


def _check_top(top: Tensor, num_classes: int) -> None:
    require(top.ndim == 3, "top", "of shape [k, M, n]", list(top.shape))
    require(top.shape[2] < num_classes, "n", f"below the number of classes {num_classes}", top.shape[2])


def _counts(top: Tensor, num_classes: int, order: Order) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (count int64 [rows, K], order [K]) for chunks of inputs, columns in the class order."""
    order = class_order(num_classes, order).to(top.device)
    require(top.shape[0] >= 1, "votes", "of at least one base model", list(top.shape))
    rank = _rank(order)
    rows = max(1, _CHUNK // num_classes)
    for start in range(0, max(1, top.shape[1]), rows):
        part = top[:, start : start + rows].to(torch.int64)
        _, m, n = part.shape
        if part.numel():
            low, high = int(part.min()), int(part.max())
            require(low >= 0 and high < num_classes, "votes", f"classes in [0, {num_classes})", f"{low}..{high}")
        ballot = torch.zeros(m, num_classes, dtype=torch.int64, device=top.device)
        for model in rank[part]:  # one model at a time: k·n may far exceed K
            ballot.scatter_add_(1, model, torch.ones_like(model))
        if n > 1 and m:
            ids = part.sort(dim=2).values
            require(bool((ids[:, :, 1:] != ids[:, :, :-1]).all()), "top", "distinct classes for each model", "repeats")
        yield ballot, order


def _rank(order: Tensor) -> Tensor:
    return torch.argsort(order)


def _beats(count: Tensor) -> Tensor:
    """A score with no ties, by votes and then by column."""
    classes = count.shape[1]
    return count * classes - torch.arange(classes, device=count.device)


def _gap(count: Tensor, mine: Tensor, n: int) -> Tensor:
    """n_mine minus the n-th largest of n_c + [c before mine] over the other columns, int64 [rows]."""
    column = torch.arange(count.shape[1], device=count.device)
    rival = count + (column < mine[:, None])
    rival.scatter_(1, mine[:, None], -1)
    return count.gather(1, mine[:, None])[:, 0] - rival.topk(n, dim=1).values[:, -1]
