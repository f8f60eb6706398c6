"""What defenses share that drop rows as they train: when they look, what they look at, and which rows are gone.

A method says which rows to drop from what the network says of them; it never trains. So the same method serves
:func:`poisonkit.train.fit` and, through :class:`Subset`, anybody else's loop (:mod:`poisonkit.hooks`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from poisonkit.errors import require
from poisonkit.models.features import features, head
from poisonkit.random import Key
from poisonkit.train import Journal, Procedure, Recipe, Step
from poisonkit.types import ImageDataset


@dataclass(frozen=True, eq=False)
class Outputs:
    """What a network in evaluation mode says of n rows, as they are stored.

    logits    float32 [n, K]
    features  float32 [n, d], what enters its last layer
    labels    int64 [n]
    weight    float32 [K, d], of its last layer
    bias      float32 [K], or None where that layer has none
    """

    logits: Tensor
    features: Tensor
    labels: Tensor
    weight: Tensor
    bias: Tensor | None

    def errors(self, *, bias: bool = True) -> Tensor:
        """p - y, the gradient of the cross entropy at the logits: float32 [n, K]; without ``bias``, that of Wh."""
        logits = self.logits if bias or self.bias is None else self.logits - self.bias
        errors = logits.softmax(1)
        errors[torch.arange(len(errors), device=errors.device), self.labels] -= 1
        return errors


def look(model: nn.Module, data: ImageDataset, rows: Tensor) -> Outputs:
    """What ``model`` says of ``rows`` (int64 [n]) of ``data``, on the device of the data."""
    rows = rows.to(data.device)
    size = 64 if data.device.type == "cpu" else 512  # twice as fast there: the activations stay in the cache
    seen = [features(model, data.images[part]) for part in torch.split(rows, size)]
    hidden, logits = (torch.cat(parts) for parts in zip(*seen, strict=True))
    return gathered(model, hidden, logits, data.labels[rows])


def gathered(model: nn.Module, hidden: Tensor, logits: Tensor, labels: Tensor) -> Outputs:
    """The outputs of ``model`` with its last layer, all on the device of ``logits``."""
    last, home = head(model), logits.device
    bias = None if last.bias is None else last.bias.detach().float().to(home)
    return Outputs(logits, hidden, labels, last.weight.detach().float().to(home), bias)


@dataclass(frozen=True, kw_only=True)
class Dropping:
    """Training that drops rows every few epochs, and for good.

    warmup  epochs before the first look; None: a quarter of the epochs, 10 at most
    every   epochs from one look to the next; None: a twentieth of the epochs (2 of 40, 10 of 200), 1 at least
    """

    warmup: int | None = None
    every: int | None = None

    def __post_init__(self) -> None:
        require(self.warmup is None or self.warmup >= 0, "warmup", "0 epochs or more, or None", self.warmup)
        require(self.every is None or self.every >= 1, "every", "1 epoch or more, or None", self.every)

    def drops(self, outputs: Outputs, key: Key) -> Tensor:
        """Which of the rows looked at go: bool [n]."""
        raise NotImplementedError

    def candidates(self, dropped_at: Tensor) -> Tensor:
        """The rows to look at, int64, given when each was dropped (int64 [N], -1: not yet): those that are left."""
        return (dropped_at < 0).nonzero()[:, 0]

    def rounds(self, epochs: int, decay: int | None = None) -> range:
        """The epochs, 0 for the first, before which the method looks; ``decay``: that of the last cut of the rate."""
        return range(self._first(epochs, 10), epochs, self._step(epochs))

    def _first(self, epochs: int, planned: int) -> int:
        """``warmup``, or what is ``planned`` for 40 epochs and more, and the same share of fewer."""
        first = min(planned, planned * epochs // 40) if self.warmup is None else self.warmup
        require(first < epochs, "warmup", f"below the {epochs} epochs of the training", first, "set warmup")
        return first

    def _step(self, epochs: int) -> int:
        return max(1, round(epochs / 20)) if self.every is None else self.every

    def procedure(self, data: ImageDataset, recipe: Recipe, key: Key, say: Callable[[str], None]) -> DropRows:
        """What :func:`poisonkit.train.fit` is to do otherwise."""
        schedule, epochs = recipe.schedule, recipe.epochs
        cuts = schedule.milestones if isinstance(schedule, Step) else ()
        decay = round(max(cuts) * epochs) if cuts else None
        return DropRows(Subset(self, len(data), epochs, key.child("drop"), decay), say)

    def __call__(
        self,
        data: ImageDataset,
        recipe: Recipe,
        *,
        key: Key,
        model: nn.Module | None = None,
        journal: Journal | None = None,
    ) -> nn.Module:
        """A network trained on ever fewer rows, or a copy of ``model`` trained further, where it ``requires_grad``.

        ``journal.notes["dropped_at"]`` is int64 [N]: before which epoch, 0 for the first, a row was dropped; -1: never.
        """
        journal = journal or Journal()
        procedure = self.procedure(data, recipe, key, journal.say)
        trained = journal.fit(data, recipe, key=key, model=model, procedure=procedure)
        journal.notes["dropped_at"] = procedure.subset.dropped_at
        return trained


class Subset:
    """The rows that ``method`` keeps of ``count`` while a network is trained for ``epochs``, whoever trains it.

    dropped_at  int64 [count]: before which epoch (0 for the first) a row was dropped; -1: it is kept
    when        the epochs before which to look
    """

    def __init__(self, method: Dropping, count: int, epochs: int, key: Key, decay: int | None = None) -> None:
        self.method, self.key = method, key
        self.when = method.rounds(epochs, decay)
        self.dropped_at = torch.full((count,), -1)

    def kept(self) -> Tensor:
        """int64, rising."""
        return (self.dropped_at < 0).nonzero()[:, 0]

    def drop(self, epoch: int, rows: Tensor, outputs: Outputs) -> int:
        """Drop what the method finds among ``rows``, the candidates; how many of them were still there.

        Raises ArgumentError where none would be left.
        """
        gone = rows[self.method.drops(outputs, self.key.child(epoch)).to(rows.device)]
        gone = gone[self.dropped_at[gone] < 0]
        left = len(self.kept()) - len(gone)
        require(left > 0, "rows", "1 or more", 0, f"{self.method} drops all that are left before epoch {epoch + 1}")
        self.dropped_at[gone] = epoch
        return len(gone)


class DropRows(Procedure):
    """Training on the rows of a :class:`Subset`."""

    def __init__(self, subset: Subset, say: Callable[[str], None]) -> None:
        self.subset, self.say = subset, say

    def __repr__(self) -> str:
        return repr(self.subset.method)

    def state(self) -> Mapping[str, Tensor]:
        return {"dropped_at": self.subset.dropped_at}

    def load(self, state: Mapping[str, Tensor]) -> None:
        self.subset.dropped_at = state["dropped_at"]

    def rows(self, model: nn.Module, data: ImageDataset, epoch: int, key: Key) -> Tensor:
        subset = self.subset
        if epoch in subset.when:
            rows = subset.method.candidates(subset.dropped_at)
            gone = subset.drop(epoch, rows, look(model, data, rows))
            self.say(f"before epoch {epoch + 1} {gone} rows dropped, {len(subset.kept())} left")
        return subset.kept()
