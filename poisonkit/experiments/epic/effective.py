"""Effective poisons: those that make an attack succeed when the other poisons are not there.

Yang, Liu and Mirzasoleiman, arXiv 2210.09671, section 3.2: "if the model is trained with the effective poisons, the
attack will be successful even if all the other poisons are removed". The paper tried "different combinations of the
poisons" and does not say which; each try is a training.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from poisonkit.errors import require


@dataclass(frozen=True, eq=False)
class Effective:
    """The smallest sufficient subset that was found.

    poisons  int64 [E], those of the subset; empty where the attack succeeds without any
    minimal  whether none of them alone can go; for attacks that more poisons never hinder
    tries    how many subsets were trained on
    """

    poisons: Tensor
    minimal: bool
    tries: int


def smallest_sufficient(ranked: Tensor, succeeds: Callable[[Tensor], bool], tries: int) -> Effective | None:
    """A small subset of ``ranked`` (int64 [P], the likeliest first) that suffices for the attack; None where all fail.

    First the shortest front of the ranking that suffices, by bisection; then, as in delta debugging (Zeller and
    Hildebrandt 2002, doi:10.1109/32.988498), halves of it, quarters, and so on to single rows are left out where the
    rest still suffices. Exact would be 2^P trainings; this stops after ``tries``, and each subset is tried once.
    """
    require(tries >= 2, "tries", "2 or more", tries)
    tried: dict[tuple[int, ...], bool] = {}

    def works(subset: Tensor) -> bool:
        which = tuple(sorted(subset.tolist()))
        if which not in tried:
            tried[which] = succeeds(subset)
        return tried[which]

    def spent() -> bool:
        return len(tried) >= tries

    if not works(ranked):
        return None
    if works(ranked[:0]):
        return Effective(ranked[:0], True, len(tried))
    low, high = 0, len(ranked)  # so many suffice not, and so many do
    while high - low > 1 and not spent():
        middle = (low + high) // 2
        low, high = (low, middle) if works(ranked[:middle]) else (middle, high)
    found, size = ranked[:high], high // 2
    while size:
        start = 0
        while start < len(found):
            if spent():
                return Effective(found, False, len(tried))
            rest = torch.cat([found[:start], found[start + size :]])
            if len(rest) and works(rest):
                found = rest
            else:
                start += size
        size //= 2
    return Effective(found, True, len(tried))
