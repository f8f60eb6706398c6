"""Neural Cleanse: the smallest patch that sends every image to a class, for each class, and which is too small.

Bolun Wang, Yuanshun Yao, Shawn Shan, Huiying Li, Bimal Viswanath, Haitao Zheng, Ben Y. Zhao, "Neural Cleanse:
Identifying and Mitigating Backdoor Attacks in Neural Networks", IEEE S&P 2019, doi:10.1109/SP.2019.00031, sections 4
and 5.

For a class t, a mask m in [0, 1] (one for all channels) and a pattern p minimise, over clean images x (equation 3),

    mean CE(f((1 - m) x + m p), t) + λ ‖m‖₁

where λ grows while the share of images sent to t is high enough, and falls while it is not. Of the norms of all
classes, the anomaly index is the distance below their median, in 1.4826 median absolute deviations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from poisonkit.errors import require
from poisonkit.models.resnet import folded
from poisonkit.perturb import frozen
from poisonkit.random import Key
from poisonkit.train import Journal
from poisonkit.types import Detection, ImageDataset


def anomaly(norms: Tensor) -> Tensor:
    """How far below the median each of ``norms`` [K] lies, in 1.4826 median absolute deviations: float64 [K].

    1.4826 of them are a standard deviation where the norms are normal. Positive for small norms; infinite for one
    that differs where most are the same.
    """
    below = norms.double().quantile(0.5) - norms.double()
    spread = 1.4826 * below.abs().quantile(0.5)
    return torch.where(below == 0, below, below / spread)


def stamped(images: Tensor, mask: Tensor, pattern: Tensor) -> Tensor:
    """(1 - m) x + m p: floats 0..255 [..., C, H, W], where ``mask`` is [..., 1, H, W] in [0, 1]."""
    return images + mask * (pattern - images)


@dataclass(frozen=True)
class NeuralCleanse:
    """Reverse a trigger for every class, and flag classes whose trigger is anomalously small.

    rounds      at most, after each of which λ may change
    steps       of Adam (Kingma and Ba, arXiv 1412.6980) in a round, each on ``batch_size`` clean images
    rate        of Adam, on the arguments of a sigmoid
    cost        λ at the start
    success     the share of images that a trigger has to send to its class
    patience    rounds above or below ``success`` after which λ is doubled, or divided by 2^1.5
    stop        rounds without a mask smaller by 1 % after which a class is done
    threshold   the anomaly index above which a class is flagged
    at_once     images that pass through the network together: classes are searched side by side
    """

    source: ClassVar[str] = "Wang et al., IEEE S&P 2019, doi:10.1109/SP.2019.00031"

    rounds: int = 50
    steps: int = 10
    batch_size: int = 32
    rate: float = 0.1
    cost: float = 0.001
    success: float = 0.99
    patience: int = 5
    stop: int = 25
    threshold: float = 2.0
    at_once: int = 160

    def __post_init__(self) -> None:
        require(self.rounds >= 1, "rounds", "1 or more", self.rounds)
        require(0 < self.success <= 1, "success", "a share in (0, 1]", self.success)

    def __call__(self, model: nn.Module, clean: ImageDataset, *, key: Key, journal: Journal | None = None) -> Detection:
        """Score: the anomaly index. p-value: that of so high a one where the norms are normal, 1 - Φ(index).

        Noted, for every class: ``masks`` [K, 1, H, W] in [0, 1], ``patterns`` [K, C, H, W] in 0..255, ``norms`` [K]
        (‖m‖₁, in pixels), ``reached`` [K], the share of images that the trigger sends there.
        """
        require(len(clean) > 0, "clean", "1 or more images", 0)
        require(clean.num_classes >= 3, "classes", "3 or more: an outlier needs others", clean.num_classes)
        journal = journal or Journal()
        together = max(1, self.at_once // self.batch_size)
        found: list[Mapping[str, Tensor]] = []
        # Its gradients by pixels are the same but for rounding, in half to three quarters of the time
        network = folded(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        with frozen(network):
            for classes in torch.split(torch.arange(clean.num_classes), together):
                name = f"classes-{int(classes[0])}-{int(classes[-1])}"
                part = journal.once(name, partial(self._reverse, network, clean, classes, key))
                journal.say(f"{name}: masks of {', '.join(f'{norm:.1f}' for norm in part['norms'].tolist())} pixels")
                found.append(part)
        for name in found[0]:
            journal.notes[name] = torch.cat([part[name] for part in found])
        score = anomaly(journal.notes["norms"])
        return Detection(score > self.threshold, score, torch.special.ndtr(-score))

    def _reverse(self, model: nn.Module, clean: ImageDataset, classes: Tensor, key: Key) -> dict[str, Tensor]:
        """The triggers of ``classes`` (int64 [G]), found side by side; none depends on which the others are."""
        home = next(model.parameters()).device
        (channels, *size), count = clean.shape, len(classes)
        streams = [key.child("start", label).generator() for label in classes.tolist()]
        starts = [torch.randn(channels + 1, *size, generator=stream) for stream in streams]
        free = torch.stack(starts).to(home).requires_grad_(True)
        adam = torch.optim.Adam([free], lr=self.rate, betas=(0.5, 0.9))
        best, reached = torch.sigmoid(2 * free.detach()), torch.zeros(count, device=home)
        norms, settled = torch.full((2, count), torch.inf, device=home)
        above, below, stale = torch.zeros(3, count, dtype=torch.int64, device=home)
        cost, classes = torch.full((count,), self.cost, device=home), classes.to(home)
        for index in range(self.rounds):
            alive = (stale < self.stop).nonzero()[:, 0]
            if len(alive) == 0:
                break
            wanted = classes[alive].repeat_interleave(self.batch_size)
            hits = torch.zeros(len(alive), device=home)
            positions = torch.arange(self.steps)
            for rows in key.child("images", index).below((len(clean),) * self.batch_size, positions).to(clean.device):
                mask, pattern = torch.split(torch.sigmoid(2 * free[alive])[:, None], [1, channels], 2)
                images = stamped(clean.images[rows].to(home).float(), mask, 255 * pattern)
                logits = model(images.flatten(0, 1))
                losses = cross_entropy(logits, wanted, reduction="none").view(len(alive), -1).mean(1)
                adam.zero_grad()
                (losses + cost[alive] * mask.flatten(1).sum(1)).sum().backward()  # type: ignore[no-untyped-call]
                adam.step()
                hits += (logits.argmax(1) == wanted).view(len(alive), -1).sum(1)
            hits /= self.steps * self.batch_size
            shown = torch.sigmoid(2 * free.detach()[alive])
            norm, enough = shown[:, 0].flatten(1).sum(1), hits >= self.success
            # The smallest mask that works; until one does, the last
            better = torch.where(enough, norm < norms[alive], norms[alive].isinf())
            best[alive[better]], reached[alive[better]] = shown[better], hits[better]
            norms[alive] = torch.where(enough, norm.minimum(norms[alive]), norms[alive])
            smaller = norms[alive] < 0.99 * settled[alive]
            settled[alive] = torch.where(smaller, norms[alive], settled[alive])
            stale[alive] = torch.where(smaller | norms[alive].isinf(), 0, stale[alive] + 1)
            above[alive] = torch.where(enough, above[alive] + 1, 0)
            below[alive] = torch.where(enough, 0, below[alive] + 1)
            cost = torch.where(above == self.patience, 2 * cost, cost)
            cost = torch.where(below == self.patience, cost / 2**1.5, cost)
            above, below = above % self.patience, below % self.patience
        mask, pattern = torch.split(best, [1, channels], 1)
        return {"masks": mask, "patterns": 255 * pattern, "norms": mask.flatten(1).sum(1), "reached": reached}
