"""Deep Partition Aggregation: k disjoint partitions, one model each.

Levine and Feizi, "Deep Partition Aggregation: Provable Defense against General Poisoning Attacks", ICLR 2021,
arXiv 2006.14768; in the integers of Wang and Feizi, arXiv 2306.16415, Theorem 2.1.
"""

from __future__ import annotations

from torch import Tensor

from poisonkit.certificates.classes import Order
from poisonkit.certificates.finite_aggregation import finite_aggregation


def dpa(votes: Tensor, num_classes: int, order: Order = None) -> tuple[Tensor, Tensor]:
    """Plurality vote of Deep Partition Aggregation and its certificate, which is exact.

    votes        uint8, uint16 or int64 [k, M]: the class each of k base models gives each of M inputs
    num_classes  K, at least 2
    order        all K classes, the one that wins ties first; None for 0, 1, ..., K-1

    Returns (prediction int64 [M], radius int64 [M]), the radius in partitions hit:
    radius = floor((n_y - max over c != y of (n_c + [c before y])) / 2).

    Raises ArgumentError for votes outside [0, K) or an order that is not a permutation.
    """
    return finite_aggregation(votes, num_classes, shifts=(0,), order=order)
