"""Temporal aggregation: models of consecutive periods vote, and the attacker is bounded in time, not in rows.

Wang and Feizi, "Temporal Robustness against Data Poisoning", NeurIPS 2023, arXiv 2302.03684.
"""

from __future__ import annotations

import torch
from torch import Tensor

from poisonkit.certificates.classes import Order, class_order, require_votes
from poisonkit.certificates.dpa import dpa
from poisonkit.errors import require

# Entries of a [T, T, rows] table held at once
_CHUNK = 1 << 22


def temporal(votes: Tensor, num_classes: int, span: int, order: Order = None) -> tuple[Tensor, Tensor, Tensor]:
    """Plurality vote of the T most recent models, and how long an attack may last without changing it; exact.

    votes  uint8, uint16 or int64 [T, M], oldest model first; model j is trained on the periods j - span + 1, ..., j
    span   periods a model is trained on
    order  all K classes, the one that wins ties first; None for 0, 1, ..., K-1

    Returns (prediction, earliness, duration), int64 [M] each. With the data of the last ``earliness`` periods
    poisoned at will, the prediction stays: that hits the last ``earliness`` models. So it does with any ``duration``
    consecutive periods poisoned, which hits up to duration + span - 1 consecutive models. Models S that are hit
    cannot change y where n_y - n_c - [c before y] is the size of S or more for all c, the votes counted outside S.

    Raises ArgumentError for votes outside [0, K) or span < 1.
    """
    require_votes(votes)
    require(span >= 1, "span", "at least 1", span)
    models, inputs = votes.shape
    ordered = class_order(num_classes, order).to(votes.device)
    prediction, _ = dpa(votes, num_classes, ordered)
    column_of = ordered.argsort()
    step = max(1, _CHUNK // (models * models))
    found = [votes.new_empty(2, 0, dtype=torch.int64)]
    for start in range(0, inputs, step):
        part = slice(start, start + step)
        found.append(_stretches(column_of[votes[:, part].to(torch.int64)], column_of[prediction[part]], num_classes))
    earliness, window = torch.cat(found, 1)
    return prediction, earliness, (window - (span - 1)).clamp(min=0)


def _stretches(column: Tensor, mine: Tensor, num_classes: int) -> Tensor:
    """The most models that may be hit at the end, and in any one stretch: columns [T, rows] to int64 [2, rows]."""
    models, rows = column.shape
    # prefix[i, j]: of the first i models, those that vote with model j; every voted rival is the vote of some model
    prefix = _prefix(column[:, None] == column)
    mine_prefix = _prefix(column == mine)
    own = column == mine
    earlier = (column < mine).long()
    # of the classes without a vote the first is the best rival, if there is one
    ordered = column.sort(0).values
    fresh = torch.cat([torch.ones_like(ordered[:1], dtype=torch.bool), ordered[1:] != ordered[:-1]])
    distinct, below = fresh.sum(0), (fresh & (ordered < mine)).sum(0)
    spare = torch.where(below < mine, 1, torch.where(distinct < num_classes, 0, -models - 1))

    most = torch.zeros(2, rows, dtype=torch.int64, device=column.device)
    alive = torch.ones(2, rows, dtype=torch.bool, device=column.device)
    for length in range(1, models):
        start = torch.arange(models - length + 1, device=column.device)
        left = mine_prefix[-1] - (mine_prefix[start + length] - mine_prefix[start])  # [starts, rows]
        rival = prefix[-1] - (prefix[start + length] - prefix[start]) + earlier  # [starts, T, rows]
        worst = torch.maximum(rival.masked_fill_(own, -models - 1).amax(1), spare)
        safe = left - worst >= length
        alive &= torch.stack([safe[-1], safe.all(0)])
        if not alive.any():
            break
        most += alive
    return most


def _prefix(votes: Tensor) -> Tensor:
    """Sums of the first 0, 1, ..., T entries of the first dimension."""
    return torch.cat([torch.zeros_like(votes[:1], dtype=torch.int64), votes.cumsum(0)])
