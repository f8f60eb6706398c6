"""A faint chessboard added to random rows, relabelled to the target.

Liao, Zhong, Squicciarini, Zhu and Miller, "Backdoor Embedding in Convolutional Neural Network Models via Invisible
Perturbation", arXiv 1808.10307, 2018; the board as Xiang, Miller and Kesidis add it, "Reverse Engineering
Imperceptible Backdoor Attacks on Deep Neural Networks for Detection and Training Set Cleansing", arXiv 2010.07489.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from poisonkit import triggers
from poisonkit.attacks.poisoning import Rows, stamp
from poisonkit.random import Key
from poisonkit.types import Budget, ImageDataset, Poison


@dataclass(frozen=True)
class Chessboard:
    """A few pixel steps added to every second pixel.

    target     the class the attacker wants
    rows       which rows may be picked: any, those of other classes, or those of the target
    amplitude  pixel steps
    static     only where row and column are both even: one pixel in four
    """

    source: ClassVar[str] = "Liao et al. 2018, arXiv 1808.10307"

    target: int = 0
    rows: Rows = "any"
    amplitude: int = 3
    static: bool = False

    def __call__(self, data: ImageDataset, budget: Budget, *, key: Key) -> Poison:
        """Poison as many rows as ``budget`` allows."""
        trigger = triggers.Chessboard(self.amplitude, self.static)
        return stamp(data, trigger, self.target, budget, key, rows=self.rows)


@dataclass(frozen=True)
class ChessboardStatic(Chessboard):
    """A few pixel steps added to the pixels of even row and column, one in four."""

    static: bool = True
