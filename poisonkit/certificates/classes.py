"""The order of classes that breaks ties, and the count of votes in it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from poisonkit.errors import require

#: All classes, the one that wins ties first; None for 0, 1, ..., K-1
Order = Tensor | Sequence[int] | None

# Entries of the [rows, K] count table held at once: int64, 32 MB.
_CHUNK = 1 << 22


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


def most_voted(top: Tensor, num_classes: int, wanted: int, order: Order = None) -> Tensor:
    """The ``wanted`` classes with the most votes, best first: integer [k, M, n] to int64 [M, wanted].

    Raises ArgumentError for ids outside [0, K).
    """
    ordered = class_order(num_classes, order).to(top.device)
    column_of = ordered.argsort()
    column = torch.arange(num_classes, device=top.device)
    rows = max(1, _CHUNK // num_classes)
    found = [ordered.new_empty(0, wanted)]
    for start in range(0, top.shape[1], rows):
        part = top[:, start : start + rows].to(torch.int64)
        low, high = int(part.min()), int(part.max())
        require(low >= 0 and high < num_classes, "votes", f"classes in [0, {num_classes})", f"{low}..{high}")
        count = torch.zeros(part.shape[1], num_classes, dtype=torch.int64, device=top.device)
        for model in part:  # one at a time: k·n may far exceed K
            ids = column_of[model]
            count.scatter_add_(1, ids, torch.ones_like(ids))
        # by votes, then by column: no ties are left to topk
        found.append(ordered[(count * num_classes - column).topk(wanted).indices])
    return torch.cat(found)


def require_votes(votes: Tensor) -> None:
    require(votes.ndim == 2, "votes", "of shape [k, M]", list(votes.shape))
