"""Training on images made hard for the network itself.

Madry, Makelov, Schmidt, Tsipras and Vladu, "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018,
https://arxiv.org/abs/1706.06083.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from poisonkit.errors import require
from poisonkit.perturb import projected_descent
from poisonkit.train.procedure import Batch, Procedure


@dataclass(frozen=True)
class Adversarial(Procedure):
    """Every step is taken on perturbed images only: within ``eps`` pixel steps, by ``steps`` steps of size ``step``."""

    eps: float
    step: float
    steps: int

    def __post_init__(self) -> None:
        require(self.eps >= 0, "eps", "0 or more pixel steps", self.eps)
        require(self.step >= 0, "step", "0 or more pixel steps", self.step)
        require(self.steps >= 0, "steps", "0 or more", self.steps)

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        hard = projected_descent(
            model,
            batch.images,
            batch.labels,
            eps=self.eps,
            step=self.step,
            steps=self.steps,
            key=batch.key.child("perturb"),
        )
        logits = model(hard)
        return cross_entropy(logits, batch.labels, label_smoothing=batch.smoothing), logits
