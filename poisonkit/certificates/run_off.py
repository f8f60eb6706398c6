"""Run-Off Election: the two classes with the most votes stand against each other in a second round.

Rezaei, Banihashem, Chegini and Feizi, "Run-Off Election: Improved Provable Defense against Data Poisoning Attacks",
ICML 2023, arXiv 2302.02300.

A model takes part by how it ranks the classes, and the certificate needs that to be a function of its logits alone.
For few classes give ``run_off`` whole rankings: ``logits.argsort(dim=-1, descending=True, stable=True)`` puts the
smaller of two classes with equal logits first, on every device. For many classes work through the inputs in chunks and
keep bits instead: each model's favourite, from which ``run_off_finalists`` finds the two finalists of every input;
then ``run_off_above`` of the logits, of all models or of one after the other; then ``run_off_votes``. There equal
logits are *not greater*: such a model counts for the second finalist, and in the certificate for neither.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from poisonkit import ops
from poisonkit.certificates.classes import Order, class_order, most_voted
from poisonkit.errors import require

# Entries of a [k, rows, K] chunk of rankings held at once
_CHUNK = 1 << 22

# Times a word whose eight bytes are 0 or 1, this has byte j as bit 56 + j: no two of its 64 products meet in a bit
_GATHER = 0x0102040810204080


def run_off(rankings: Tensor, shifts: Sequence[int] | None = None, order: Order = None) -> tuple[Tensor, Tensor]:
    """Winner and certificate of the election, from whole rankings.

    rankings  uint8, uint16 or int64 [n, M, K]: the classes of each model, best first
    shifts    of Finite Aggregation, as in :func:`finite_aggregation`; None for disjoint partitions
    order     all K classes, the one that wins ties first; None for 0, 1, ..., K-1

    Returns (prediction int64 [M], radius int64 [M]), the radius in partitions, or buckets, hit; its formula is that
    of ``ops.run_off_radius``. Raises ArgumentError for rankings that are not permutations.
    """
    require(rankings.ndim == 3, "rankings", "of shape [n, M, K]", list(rankings.shape))
    models, inputs, classes = rankings.shape
    step = max(1, _CHUNK // max(1, models * classes))
    parts = [_run_off(rankings[:, start : start + step], shifts, order) for start in range(0, max(1, inputs), step)]
    return torch.cat([prediction for prediction, _ in parts]), torch.cat([radius for _, radius in parts])


def _run_off(rankings: Tensor, shifts: Sequence[int] | None, order: Order) -> tuple[Tensor, Tensor]:
    classes = rankings.shape[2]
    ids = rankings.to(torch.int64)
    places = torch.arange(classes, device=ids.device)
    require(bool((ids.sort().values == places).all()), "rankings", f"permutations of 0..{classes - 1}", "others")
    first = ids[:, :, 0]
    finalists = run_off_finalists(first, classes, order)
    # a score that falls with the place: the ranking as logits
    score = torch.empty_like(ids).scatter_(2, ids, -places.expand_as(ids))
    return run_off_votes(first, run_off_above(score, finalists), classes, shifts, order)


def run_off_finalists(first: Tensor, num_classes: int, order: Order = None) -> Tensor:
    """The two most-voted classes of each input, most votes first: the models' favourites [n, M] to int64 [M, 2]."""
    require(first.ndim == 2, "first", "of shape [n, M]", list(first.shape))
    return most_voted(first[:, :, None], num_classes, 2, order)


def run_off_above(logits: Tensor, finalists: Tensor) -> Tensor:
    """Which classes each finalist beats in each model: logits [..., M, K] to packed uint8 [..., M, 2, ceil(K/8)].

    finalists  int64 [M, 2], of :func:`run_off_finalists`

    Bit c % 8 of byte c // 8 says that the finalist's logit is greater than that of class c; equal is not greater.
    """
    greater = logits.gather(-1, finalists.expand(*logits.shape[:-1], 2))[..., None] > logits[..., None, :]
    if greater.device.type == "cpu":  # several times faster there
        return torch.from_numpy(np.packbits(greater.numpy(), axis=-1, bitorder="little"))
    return _pack(greater)


def _pack(bits: Tensor) -> Tensor:
    """Eight bits to a byte, the first the lowest: bool [..., K] to uint8 [..., ceil(K/8)], on any device."""
    words = torch.nn.functional.pad(bits, (0, -bits.shape[-1] % 8)).contiguous().view(torch.int64)
    return ((words * _GATHER) >> 56 & 255).to(torch.uint8)


def run_off_votes(
    first: Tensor,
    above: Tensor,
    num_classes: int,
    shifts: Sequence[int] | None = None,
    order: Order = None,
) -> tuple[Tensor, Tensor]:
    """Winner and certificate of the election, from favourites and bits.

    first   uint8, uint16 or int64 [n, M]: the favourite class of each model
    above   uint8 [n, M, 2, ceil(K/8)]: :func:`run_off_above` of every model
    shifts, order and the result are those of :func:`run_off`

    Raises ArgumentError for favourites outside [0, K).
    """
    ordered = class_order(num_classes, order).to(first.device)
    return ops.run_off_radius(first, above, ordered, (0,) if shifts is None else shifts)
