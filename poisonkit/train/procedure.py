"""What a method may change about training, and nothing else of the loop: rows, loss, gradients, what follows a step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from poisonkit.random import Key
from poisonkit.types import ImageDataset


@dataclass(frozen=True, eq=False)
class Batch:
    """What a step takes.

    images  uint8 [B, C, H, W], augmented, on the network's device
    labels  int64 [B]
    rows    int64 [B], their positions in the training set
    step    0 for the first of the whole training
    epoch   0 for the first
    key     of this step
    smoothing  the recipe's share of the label that is spread over all classes
    """

    images: Tensor
    labels: Tensor
    rows: Tensor
    step: int
    epoch: int
    key: Key
    smoothing: float = 0.0


class Procedure:
    """Ordinary training. A method overrides what it does otherwise; its ``repr`` says all that its steps depend on.

    What changes while it trains is its :meth:`state`, which a checkpoint keeps beside the weights.
    """

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def state(self) -> Mapping[str, Tensor]:
        """The tensors that change in training, by name."""
        return {}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take up what :meth:`state` gave."""

    def rows(self, model: nn.Module, data: ImageDataset, epoch: int, key: Key) -> Tensor | None:
        """The rows int64 [n] that ``epoch`` (0 for the first) trains on, before it begins; None for all."""
        return None

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """What a step minimises, and the logits [B, K] that its accuracy is read from."""
        logits = model(batch.images)
        return cross_entropy(logits, batch.labels, label_smoothing=batch.smoothing), logits

    def gradients(self, model: nn.Module, batch: Batch) -> None:
        """Change the gradients of a step, in place, before it is taken."""

    def stepped(self, model: nn.Module, batch: Batch) -> None:
        """What follows a step, before the next."""
