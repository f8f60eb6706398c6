"""Interleaved Ensemble Unlearning: a shallow network finds what is learned too easily, and the deep one unlearns it.

Zeyu Michael Li, "Using Interleaved Ensemble Unlearning to Keep Backdoors at Bay for Finetuning Vision Transformers",
2024, https://arxiv.org/abs/2410.01128; and the code its author released,
https://github.com/lizeyu090312/InterleavedEnsembleUnlearning.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from poisonkit.data.views import Views
from poisonkit.defenses.training.gate import Exactly, Gate, by_confidence, poisoned_module
from poisonkit.defenses.training.interleaved import Interleaved, UnlearningRate
from poisonkit.defenses.training.isolation import Isolating, Shape, lowest, outcomes
from poisonkit.errors import require
from poisonkit.models import ViT
from poisonkit.random import Key
from poisonkit.train import Cosine, Journal, Recipe
from poisonkit.train.finetuning import fine_tune
from poisonkit.types import ImageDataset

# The rate as the code has it: the one it names, 2e-4, times batch size / 256; constant after an epoch
_RATE = Cosine(5e-5, 5e-5, warmup=0.1)
_POISONED = Recipe(ViT(depth=1), 10, 64, "adamw", _RATE, weight_decay=0.0, augment=None, channels_last=False)


@dataclass(frozen=True)
class IEU:
    """Stage 1 fine-tunes the poisoned module, which gates the rows; stage 2 fine-tunes the network that is kept.

    A row of which the poisoned module is surer than ``threshold`` is never learned. It is queued, and unlearned when a
    batch of such rows is there. The gate sees plain images and is frozen, so it decides every row once.

    depth      the poisoned module is the first so many blocks of the network, where that is a vision transformer of
               this package, with a new head; None, or another network: it is ``poisoned.model``, untrained
    poisoned   how it is trained
    shape      of its loss, as in ABL, about ``gamma``; the paper finds that neither helps
    threshold  confidence from which on a row is flagged: 0.95 in the paper, 0.998 on GTSRB
    at         what a row of exactly that confidence is: "flagged"; "learned" by the paper's text; its code, of two
               strict inequalities, makes it "neither"
    isolate    flag instead this share of the rows, those of the poisoned module's lowest losses
    noise      standard deviation of what is added to the poisoned module's logits
    mask       whether flagged rows are left out of learning
    rate       of unlearning
    keep       whether flagged rows too few for a batch wait for the next epoch; in the code they are dropped
    views      that are learned of an image; None: the one of the recipe, as in the paper for other architectures
    clip       largest norm of a parameter's gradient
    decay      weight decay of the first and the last step, in place of the recipe's; None: the recipe's
    """

    source: ClassVar[str] = "Li 2024, arXiv 2410.01128"

    depth: int | None = 1
    poisoned: Recipe = _POISONED
    shape: Shape = "none"
    gamma: float = 0.5
    threshold: float = 0.95
    at: Exactly = "flagged"
    isolate: float | None = None
    noise: float = 0.0
    mask: bool = True
    rate: UnlearningRate = field(default_factory=UnlearningRate)
    keep: bool = False
    views: Views | None = field(default_factory=Views)
    clip: float | None = 3.0
    decay: tuple[float, float] | None = (0.04, 0.1)

    def __post_init__(self) -> None:
        require(self.depth is None or self.depth >= 1, "depth", "1 or more, or None", self.depth)
        require(0 < self.threshold <= 1, "threshold", "a confidence in (0, 1]", self.threshold)
        require(self.isolate is None or 0 <= self.isolate <= 1, "isolate", "a share in [0, 1], or None", self.isolate)
        require(self.noise >= 0, "noise", "0 or more", self.noise)
        require(self.clip is None or self.clip > 0, "clip", "above 0, or None", self.clip)

    def check_model(self, model: nn.Module, data: ImageDataset) -> None:
        """Raise ArgumentError where the poisoned module, if it is a network of its own, does not fit the images."""
        poisoned_module(self.poisoned, self.depth, data, Recipe(), Key(0), model)

    def __call__(
        self,
        data: ImageDataset,
        recipe: Recipe,
        *,
        key: Key,
        model: nn.Module | None = None,
        journal: Journal | None = None,
    ) -> nn.Module:
        """The network of stage 2. Meant for a pretrained ``model``: neither stage has the epochs to begin anew.

        ``journal.notes``: "confidence" float32 [N] of the poisoned module and what it "flagged", bool [N].
        """
        journal = journal or Journal()
        seen = journal.once("gate", lambda: self.gate(data, recipe, key=key, model=model, journal=journal))
        return self.interleave(data, recipe, seen, key=key, model=model, journal=journal)

    def gate(
        self,
        data: ImageDataset,
        recipe: Recipe,
        *,
        key: Key,
        model: nn.Module | None = None,
        journal: Journal | None = None,
    ) -> Mapping[str, Tensor]:
        """Stage 1: what the poisoned module makes of every row, "loss", "confidence" and "predicted", each [N].

        All that :meth:`interleave` needs of it, for any ``threshold``, ``isolate`` and all other options of stage 2.
        """
        key = key.child("poisoned module")
        module = poisoned_module(self.poisoned, self.depth, data, recipe, key, model)
        procedure = Isolating(self.poisoned, len(data), shape=self.shape, gamma=self.gamma, clip=self.clip, key=key)
        module = fine_tune(data, procedure, model=module, journal=(journal or Journal()).stage("poisoned module"))
        return outcomes(module, data, self.noise, key)

    def decide(self, seen: Mapping[str, Tensor]) -> Gate:
        """Which rows are learned, and which are flagged."""
        learned, flagged = by_confidence(seen["confidence"], self.threshold, self.at)
        if self.isolate is not None:
            flagged = lowest(seen["loss"], self.isolate)
            learned = ~flagged
        return Gate(learned if self.mask else torch.ones_like(learned), flagged, seen["predicted"])

    def interleave(
        self,
        data: ImageDataset,
        recipe: Recipe,
        seen: Mapping[str, Tensor],
        *,
        key: Key,
        model: nn.Module | None = None,
        journal: Journal | None = None,
    ) -> nn.Module:
        """Stage 2: learn and unlearn by the gate that follows from what stage 1 has ``seen``."""
        journal, gate = journal or Journal(), self.decide(seen)
        journal.notes.update(confidence=seen["confidence"], flagged=gate.flagged)
        here = gate.to(data.device)
        procedure = Interleaved(
            recipe, data, here, self.rate, keep=self.keep, views=self.views, clip=self.clip, decay=self.decay, key=key
        )
        return fine_tune(data, procedure, model=model, journal=journal.stage("robust module"))
