"""l0-inv: a few pixels found by gradient ascent on a clean network, replaced in random rows of other labels.

Li, Xue, Zhao, Zhu and Zhang, "Invisible Backdoor Attacks on Deep Neural Networks via Steganography and
Regularization", arXiv 1909.02742, 2019 (IEEE TDSC 2020), section 5. The paper excites a neuron under an l0 penalty;
here it is the probability of the target, under a bound.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from poisonkit.attacks.crafting import PLAIN_SURROGATE, Fit, State, log_probability, others, surrogate
from poisonkit.attacks.poisoning import Rows, stamp
from poisonkit.errors import require
from poisonkit.perturb import Score, ascend, frozen
from poisonkit.random import Key
from poisonkit.train import Recipe, fit
from poisonkit.triggers import Overlay
from poisonkit.types import Budget, ImageDataset, Poison

_SOURCE = "Li et al. 2019, arXiv 1909.02742"


@dataclass(frozen=True)
class L0Invisible:
    """A few pixels replaced by saturated colours.

    target     the class the attacker wants
    rows       which rows may be picked: any, those of other classes, or those of the target
    pixels     how many; None for 9 in 32×32, and the same share of other sizes
    steps      of gradient ascent on the colours, each on ``batch_size`` images
    surrogate  how the attacker's own network is trained
    """

    source: ClassVar[str] = _SOURCE

    target: int = 0
    rows: Rows = "any"
    pixels: int | None = None
    steps: int = 100
    batch_size: int = 64
    surrogate: Recipe = PLAIN_SURROGATE

    def craft(self, data: ImageDataset, *, key: Key, fit: Fit = fit) -> State:
        """The colours, uint8 [C, H, W], and where they show, bool [1, H, W].

        Eight times the pixels are taken by what the best colour would gain, to first order; then their colours are
        moved uphill and the half that gains least is given up, until as many are left as are wanted.
        """
        _, height, width = data.shape
        count = max(1, 9 * height * width // 1024) if self.pixels is None else self.pixels
        require(1 <= count <= height * width, "pixels", f"in [1, {height * width}]", count)
        model = surrogate(self.surrogate, data, key, fit)
        with frozen(model):
            return self._craft(self.score(model), count, data, key.child("craft"))

    def _craft(self, score: Score, count: int, data: ImageDataset, key: Key) -> State:
        _, height, width = data.shape
        rows = others(data, self.target)
        mask = torch.ones(1, height, width, dtype=torch.bool, device=data.device)
        colours = torch.zeros(data.shape, device=data.device)

        def put(images: Tensor, colours: Tensor) -> Tensor:
            return torch.where(mask, 255 * torch.sigmoid(colours), images)

        for i, fold in enumerate((8, 4, 2, 1)):
            some = rows[key.child("rank", i).permutation(len(rows))[:512].to(data.device)]
            gain = torch.zeros(height * width, device=data.device)
            for batch in torch.split(some, self.batch_size):
                clean = data.images[batch].float()
                changed = (put(clean, colours) if i else clean.clone()).requires_grad_(True)
                (slope,) = torch.autograd.grad(score(changed).sum(), changed)
                best = torch.maximum(slope * (255 - clean), -slope * clean)
                gain += (slope * (changed.detach() - clean) if i else best).sum((0, 1)).flatten()
            kept = gain.masked_fill(~mask.flatten(), -torch.inf).topk(min(fold * count, height * width)).indices
            mask = torch.zeros(height * width, dtype=torch.bool, device=data.device).index_fill(0, kept, True)
            mask = mask.view(1, height, width)
            colours = ascend(
                score,
                data.images,
                rows,
                colours,
                put,
                steps=self.steps // 4,
                rate=0.3,
                batch_size=self.batch_size,
                key=key.child(i),
            )
        return {"pixels": ((colours > 0) * 255).to(torch.uint8).cpu(), "mask": mask.cpu()}

    def score(self, model: nn.Module) -> Score:
        """What the trigger raises: the log probability of the target."""
        return log_probability(model, self.target)

    def trigger(self, state: State) -> Overlay:
        return Overlay(state["pixels"], state["mask"])

    def __call__(self, data: ImageDataset, budget: Budget, *, key: Key, state: State | None = None) -> Poison:
        """Poison as many rows as ``budget`` allows."""
        trigger = self.trigger(state or self.craft(data, key=key))
        return stamp(data, trigger, self.target, budget, key, rows=self.rows)
