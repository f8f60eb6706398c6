"""Hash bagging: g hash functions cut the same rows into k partitions each, and g·k models vote.

Chen, Li, Li, Wu and Yan, "On Collective Robustness of Bagging Against Data Poisoning", ICML 2022, arXiv 2205.13176.
"""

from __future__ import annotations

from torch import Tensor

from poisonkit import ops
from poisonkit.certificates.classes import Order, class_order, require_votes


def hash_bagging(votes: Tensor, num_classes: int, groups: int, order: Order = None) -> tuple[Tensor, Tensor]:
    """Plurality vote of hash bagging and its certificate, which is exact.

    votes        uint8, uint16 or int64 [g·k, M]; model group·k + partition is trained on that partition of that hash
    num_classes  K, at least 2
    groups       g, the number of independent hash functions
    order        all K classes, the one that wins ties first; None for 0, 1, ..., K-1

    Returns (prediction int64 [M], radius int64 [M]). A row is in one partition of every group, so a radius r allows r
    partitions hit in each group: the least, over the classes c, of the largest r for which the r strongest models of
    every group have together at most n_y - n_c - [c before y], a model having 1 + [v_i = y] - [v_i = c].

    Raises ArgumentError for votes outside [0, K), or where ``groups`` does not divide the number of models.
    """
    require_votes(votes)
    ordered = class_order(num_classes, order).to(votes.device)
    return ops.vote_radius(votes[:, :, None], ordered, None, (0,), groups)
