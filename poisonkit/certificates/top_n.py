"""Votes for n classes a model, and the certificate that a label stays among the n most-voted.

The count is that of Wang and Feizi, "On Practical Aspects of Aggregation Defenses against Data Poisoning Attacks",
2023, arXiv 2306.16415, section 5, which has no certificate; this one is the bound of ``ops.vote_radius``.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from poisonkit import ops
from poisonkit.certificates.classes import Order, class_order, most_voted
from poisonkit.errors import require


def top_n(
    top: Tensor,
    num_classes: int,
    label: Tensor,
    order: Order = None,
    *,
    shifts: Sequence[int] = (0,),
    groups: int = 1,
) -> Tensor:
    """How many hits cannot push ``label`` out of the n most-voted classes.

    top     uint8, uint16 or int64 [k, M, n]: the n best classes of each base model, each worth one vote
    label   int64 [M]
    order   all K classes, the one that wins ties first; None for 0, 1, ..., K-1
    shifts  of Finite Aggregation; (0,) for disjoint partitions
    groups  of hash bagging; 1 for one hash function

    Returns radius int64 [M], -1 where the label is not among the n most-voted classes, so that the share of
    radius >= r is the top-n accuracy certified at r. It is the n-th smallest, over the classes c != label, of the
    hits that keep c behind the label; for disjoint partitions that is floor((n_label - q) / 2), with q the n-th
    largest of n_c + [c before label], and n = 1 is :func:`dpa`. It does not use that n rivals have to pass at once.
    Raises ArgumentError for ids outside [0, K), repeated within a model's n, or n >= K.
    """
    _check(top, num_classes)
    ordered = class_order(num_classes, order).to(top.device)
    return ops.vote_radius(top, ordered, label.to(top.device, ordered.dtype), shifts, groups)[1]


def guess_set(top: Tensor, num_classes: int, order: Order = None) -> Tensor:
    """The n most-voted classes of each input, int64 [M, n], best first; arguments as in :func:`top_n`."""
    _check(top, num_classes)
    return most_voted(top, num_classes, top.shape[2], order)


def _check(top: Tensor, num_classes: int) -> None:
    require(top.ndim == 3, "top", "of shape [k, M, n]", list(top.shape))
    require(top.shape[2] < num_classes, "n", f"below the number of classes {num_classes}", top.shape[2])
