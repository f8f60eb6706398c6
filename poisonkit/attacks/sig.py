"""SIG: waves over rows of the target class, whose labels stay as they are.

Barni, Kallas and Tondi, "A New Backdoor Attack in CNNs by Training Set Corruption Without Label Poisoning",
arXiv 1902.11237, 2019.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from poisonkit.attacks.poisoning import Rows, stamp
from poisonkit.random import Key
from poisonkit.triggers import Blend, Sinusoid, wrapped_wave
from poisonkit.types import Budget, ImageDataset, Poison

_SOURCE = "Barni et al. 2019, arXiv 1902.11237"


@dataclass(frozen=True)
class Sig:
    """Waves across the image, clean label.

    target          the class the attacker wants
    rows            which rows may be picked: those of the target, those of other classes, or any
    amplitude       of the waves in a training row, in pixel steps
    periods         waves across the image
    test_amplitude  of the waves at test time; none for that of training (the paper tries stronger ones)
    """

    source: ClassVar[str] = _SOURCE

    target: int = 0
    rows: Rows = "target"
    amplitude: float = 40.0
    periods: float = 6.0
    test_amplitude: float | None = None

    def __call__(self, data: ImageDataset, budget: Budget, *, key: Key) -> Poison:
        """Poison as many rows as ``budget`` allows."""
        trigger = Sinusoid(self.amplitude, self.periods)
        at_test = trigger if self.test_amplitude is None else Sinusoid(self.test_amplitude, self.periods)
        return stamp(data, trigger, self.target, budget, key, rows=self.rows, at_test=at_test)


@dataclass(frozen=True)
class SigWrapped:
    """What some published code stamps as SIG: a blended picture of waves whose negative half wrapped around.

    target  the class the attacker wants
    rows    which rows may be picked: those of the target, those of other classes, or any
    alpha   share of the picture
    """

    source: ClassVar[str] = f"a known slip in code after {_SOURCE}"

    target: int = 0
    rows: Rows = "target"
    alpha: float = 0.2

    def __call__(self, data: ImageDataset, budget: Budget, *, key: Key) -> Poison:
        """Poison as many rows as ``budget`` allows."""
        _, height, width = data.shape
        trigger = Blend(wrapped_wave(width).expand(1, height, width), self.alpha)
        return stamp(data, trigger, self.target, budget, key, rows=self.rows)
