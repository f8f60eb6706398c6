"""Finite Aggregation: every row is in one of n buckets, and every bucket feeds d of n models.

Wang, Levine and Feizi, "Improved Certified Defenses against Data Poisoning with (Deterministic) Finite Aggregation",
ICML 2022, arXiv 2202.02628.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from poisonkit import ops
from poisonkit.certificates.classes import Order, class_order, require_votes


def finite_aggregation(
    votes: Tensor, num_classes: int, shifts: Sequence[int], order: Order = None
) -> tuple[Tensor, Tensor]:
    """Plurality vote of Finite Aggregation and its certificate.

    votes        uint8, uint16 or int64 [n, M]: the class each of n = k·d models gives each of M inputs
    num_classes  K, at least 2
    shifts       d distinct numbers in [0, n): bucket h feeds the models (h + s) mod n. Keep them with the models;
                 (0,) is Deep Partition Aggregation.
    order        all K classes, the one that wins ties first; None for 0, 1, ..., K-1

    Returns (prediction int64 [M], radius int64 [M]), the radius in buckets hit: the least, over the classes c, of
    the largest r for which the r strongest buckets gain at most n_y - n_c - [c before y], a bucket gaining the sum of
    1 + [v_i = y] - [v_i = c] over the models i that it feeds.

    Raises ArgumentError for votes outside [0, K), and for shifts that repeat or are out of range.
    """
    require_votes(votes)
    ordered = class_order(num_classes, order).to(votes.device)
    return ops.vote_radius(votes[:, :, None], ordered, None, shifts, 1)
