"""Training under Gaussian clouded logits: the equations of :mod:`poisonkit.defenses.training.gcl`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear, normalize, one_hot

from poisonkit.defenses.training.mixup import Mixup
from poisonkit.models.features import head, watched
from poisonkit.random import Key
from poisonkit.train import Batch, Procedure
from poisonkit.types import ImageDataset


def clouds(counts: Tensor) -> Tensor:
    """Δ, how far each class of ``counts`` int64 [K] rows is from the largest, in [0, 1]: float32 [K]; 0 if balanced."""
    logs = counts.double().log()
    gap = logs.max() - logs
    return (gap / gap.max().clamp(min=1e-12)).float()


@dataclass(frozen=True)
class Stage:
    """The numbers of a stage: s, a and m of the logits, γ of the loss (1 - p)^γ CE, α of mixup."""

    scale: float
    cloud: float
    margin: float
    focus: float
    mixup: float

    def logits(self, cosines: Tensor, noise: Tensor, deltas: Tensor, labels: Tensor) -> Tensor:
        """z [B, K] of ``cosines`` [B, K], ``noise`` ε [B, K], ``deltas`` Δ [K] and ``labels`` int64 [B]."""
        margin = self.margin * one_hot(labels, cosines.shape[1])
        return self.scale * (cosines - margin - self.cloud * noise.clamp(-1, 1).abs() * deltas)


@dataclass(frozen=True, eq=False)
class Clouded(Procedure):
    """Training under clouded logits; with ``balanced``, of the last layer alone, on classes drawn evenly."""

    stage: Stage
    counts: Tensor
    balanced: bool = False

    def __repr__(self) -> str:
        return f"Clouded({self.stage}, {self.counts.tolist()}, {self.balanced})"

    def rows(self, model: nn.Module, data: ImageDataset, epoch: int, key: Key) -> Tensor | None:
        if not self.balanced:
            return None
        drawn = key.child("balanced", epoch).below((data.num_classes, 1 << 62), torch.arange(len(data)))
        labels = drawn[:, 0].to(data.device)
        within = drawn[:, 1].to(data.device) % self.counts[labels]
        return data.labels.argsort(stable=True)[(self.counts.cumsum(0) - self.counts)[labels] + within]

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        if self.balanced:
            model.eval()  # the features stay as they were
        images, labels, share = batch.images.float(), batch.labels, 1.0
        other = batch.key.child("partner").permutation(len(labels), labels.device)
        if self.stage.mixup:
            share = Mixup(self.stage.mixup).share(batch.key)
            images = share * images + (1 - share) * images[other]
        with watched(model) as seen:
            model(images)
        cosines = linear(normalize(seen[0]), normalize(head(model).weight))
        noise = torch.randn(cosines.shape, generator=batch.key.child("cloud").generator()).to(cosines.device) / 3
        deltas = clouds(self.counts).to(cosines.device)

        def of(labels: Tensor) -> Tensor:
            logits = self.stage.logits(cosines, noise, deltas, labels)
            loss = cross_entropy(logits, labels, reduction="none", label_smoothing=batch.smoothing)
            return ((1 - (-loss).exp().detach()) ** self.stage.focus * loss).mean()

        return share * of(labels) + (1 - share) * of(labels[other]), cosines
