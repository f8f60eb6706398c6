"""Maximum-Margin Activation Clipping: bounds on the ReLUs that keep clean logits and lower the largest margins.

Wang, Miller and Kesidis, "Post-Training Overfitting Mitigation in DNN Classifiers" (first "Maximum Margin Based
Activation Clipping for Post-Training Overfitting Mitigation in DNN Classifiers"), 2023, arXiv 2309.16827, section 3.1,
equation 4. The released mode follows what the code of "Improved Activation Clipping for Universal Backdoor Mitigation
and Test-Time Detection", arXiv 2308.04617, does.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache, partial
from typing import ClassVar, Literal

from torch import Tensor, nn

from poisonkit.defenses.margins import Ascent, margin, noise
from poisonkit.defenses.repair.bounding import Bounding, Precision, alternate, by_epochs
from poisonkit.errors import require
from poisonkit.models import predict
from poisonkit.random import Key
from poisonkit.train import Journal
from poisonkit.types import ImageDataset


@dataclass(frozen=True)
class MMAC:
    """Bounds that keep clean logits and lower the largest margins.

    "paper" minimises the mean squared change of the clean logits plus ``weight`` times the mean largest margin, in
    turns: maximisers climb on the bounded network, then the bounds take a step. "released" climbs on the network
    without bounds, three times in all and from the start, takes batches of 200 of the clean images that are classified
    right, and starts all bounds at 1; ``ascent``, ``starts``, ``tolerance`` and ``hold`` are of the paper's mode.

    mode        which
    weight      λ, of the margins, at first (the paper has it positive; the code comes to 0.4)
    hold        every 10 iterations, after 30, λ is multiplied by 1.2 where at least this share of the clean images that
                were classified right still are, and else divided by it, as the code does; None: λ stays
    iterations  at most so many (epochs in the released mode)
    tolerance   an end where the loss has changed by less, three times running
    starts      J, maximisers of each class; None for as many as it has clean images
    ascent      of the maximisers between two steps; the paper says gradient ascent
    rate        of Adam
    precision   of the arithmetic of layers; "bfloat16" is faster where the hardware has it
    """

    source: ClassVar[str] = "Wang, Miller and Kesidis 2023, arXiv 2309.16827"

    mode: Literal["paper", "released"] = "paper"
    weight: float = 0.4
    hold: float | None = 0.95
    iterations: int = 300
    tolerance: float = 1e-4
    starts: int | None = None
    ascent: Ascent = field(default_factory=Ascent)
    rate: float = 0.1
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        require(self.mode in ("paper", "released"), "mode", "'paper' or 'released'", repr(self.mode))
        require(self.weight >= 0, "weight", "0 or more", self.weight)
        require(self.hold is None or 0 < self.hold <= 1, "hold", "in (0, 1], or none", self.hold)
        require(self.iterations >= 1, "iterations", "1 or more", self.iterations)
        require(self.starts is None or self.starts >= 1, "starts", "1 or more, or none", self.starts)

    def __call__(self, model: nn.Module, clean: ImageDataset, *, key: Key, journal: Journal | None = None) -> nn.Module:
        """The network with bounds; ``journal`` notes them, and the loss of each iteration or the weight of each epoch.

        Raises ArgumentError for a network without ReLUs.
        """
        make = partial(
            Bounding,
            model,
            rate=self.rate,
            precision=self.precision,
            method=self,
            key=key,
            journal=journal or Journal(),
        )
        if self.mode == "released":
            return self._released(make, model, clean, key)
        bounding = make(clean, start=None, floor=0.0)
        return alternate(
            bounding,
            bounding.preserve(),
            weight=self.weight,
            iterations=self.iterations,
            tolerance=self.tolerance,
            starts=self.starts,
            ascent=self.ascent,
            key=key,
            hold=self.hold,
        )

    def _released(self, make: partial[Bounding], model: nn.Module, clean: ImageDataset, key: Key) -> nn.Module:
        right = predict(model, clean.images) == clean.labels
        require(bool(right.any()), "clean images", "classified right, one of them at least", "none")
        kept = clean.take(right.nonzero()[:, 0])
        bounding = make(kept, start=1.0, floor=None)
        climb = Ascent(steps=300, rate=0.01, kind="plain")

        @cache
        def maximisers(turn: int) -> tuple[Tensor, Tensor]:
            pixels, classes = noise(50, clean.num_classes, clean.shape, key.child("starts", turn))
            classes = classes.to(bounding.device)
            found = climb(lambda images: bounding.scores(images, bounding.plain), pixels.to(bounding.device), classes)
            return 255 * found.clamp(0, 1), classes

        def penalty(epoch: int, step: int) -> Tensor:
            images, classes = maximisers(epoch // 100)
            some = key.child("maximisers", epoch, step).permutation(len(images), bounding.device)[:200]
            return margin(bounding.scores(images[some]), classes[some]).mean()

        return by_epochs(
            bounding,
            bounding.preserve(),
            penalty,
            weight=self.weight,
            epochs=self.iterations,
            adjusted=range(30, self.iterations, 10),
            key=key,
        )
