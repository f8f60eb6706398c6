"""The second stage of Interleaved Ensemble Unlearning: what a gate holds for poisoned is unlearned, not learned."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from math import exp, log, sqrt
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from poisonkit.data.views import Views
from poisonkit.defenses.training.gate import Gate
from poisonkit.random import Key
from poisonkit.train import Batch, Recipe
from poisonkit.train.checkpoints import digest
from poisonkit.train.finetuning import FineTuning
from poisonkit.train.loop import load_optimizer, new_optimizer, optimizer_state
from poisonkit.types import ImageDataset


@dataclass(frozen=True)
class UnlearningRate:
    """What the learning rate is multiplied by in an unlearning step.

    kind      "dynamic": :func:`dynamic_scale` of the cross entropy of the previous unlearning step; "average": of its
              running mean, which the paper proposes against instability; "constant": ``constant``
    constant  of "constant"
    memory    weight of the past in the running mean
    restart   whether each epoch begins as the first does, at the learning rate itself: True in the paper's text, False
              in its code
    """

    kind: Literal["dynamic", "average", "constant"] = "dynamic"
    constant: float = 1.0
    memory: float = 0.9
    restart: bool = False


def dynamic_scale(loss: float, num_classes: int) -> float:
    """max(6 - exp(L/√2 - ln C), 0.2): about 6 where the previous batch is still known, 0.2 where it is long forgotten.

    Equation 4 of the paper, with the constants of its code.
    """
    exponent = loss / sqrt(2) - log(num_classes)
    return max(6 - exp(min(exponent, 2.0)), 0.2)  # from an exponent of ln 5.8 on it is 0.2


class Interleaved(FineTuning):
    """Rows of ``gate.learned`` are learned; as soon as a batch of flagged ones has come, one step unlearns it.

    The gradient of a step is the sum over the learned rows and views, divided by all of them: what masking the logits
    of an ensemble gives, without a forward pass of the rows that are masked. Unlearning steps have an optimiser state
    of their own, and see the plain image beside its views.
    """

    def __init__(
        self,
        recipe: Recipe,
        data: ImageDataset,
        gate: Gate,
        rate: UnlearningRate,
        *,
        keep: bool,
        views: Views | None,
        clip: float | None,
        decay: tuple[float, float] | None,
        key: Key,
    ) -> None:
        super().__init__(recipe, len(data), views=views, clip=clip, decay=decay, key=key)
        self.data, self.gate, self.rate, self.keep = data, gate, rate, keep
        self.optimizer: torch.optim.Optimizer | None = None
        self.found: dict[str, Tensor] = {}
        self.queue = torch.empty(0, dtype=torch.int64, device=data.device)
        self.last: float | None = None

    def __repr__(self) -> str:
        decided = digest({"learned": self.gate.learned, "flagged": self.gate.flagged})
        return f"{super().__repr__()[:-1]}, {self.rate!r}, keep={self.keep}, gate={decided})"

    def state(self) -> Mapping[str, Tensor]:
        last = torch.tensor(float("nan") if self.last is None else self.last, dtype=torch.float64)
        assert self.optimizer is not None
        return {"queue": self.queue, "last": last, **optimizer_state(self.optimizer, self.model)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        self.found = dict(state)
        self.queue, last = self.found.pop("queue").to(self.data.device), float(self.found.pop("last"))
        self.last = None if last != last else last

    def rows(self, model: nn.Module, data: ImageDataset, epoch: int, key: Key) -> None:
        if self.optimizer is None:
            self.model, self.optimizer = model, new_optimizer(model, self.recipe)
            load_optimizer(self.optimizer, model, self.found)
        if not self.keep:
            self.queue = self.queue[:0]
        if self.rate.restart:
            self.last = None

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        rows, labels = batch.rows, batch.labels
        chosen = self.gate.learned[rows].nonzero()[:, 0]
        answers = one_hot(self.gate.predicted[rows], self.data.num_classes).float().to(labels.device)
        if not len(chosen):  # nothing to learn: no gradient, and no step
            return torch.zeros((), device=labels.device, requires_grad=True), answers
        mine = chosen.to(labels.device)
        views = self.views_of(batch.images[mine], rows[chosen].to(labels.device), batch.epoch)
        logits = model(torch.cat(views))
        wanted, smoothing = labels[mine].repeat(len(views)), batch.smoothing
        total = cross_entropy(logits, wanted, reduction="sum", label_smoothing=smoothing)
        answers[mine] = logits[: len(mine)].detach().float()
        return total / (len(views) * len(rows)), answers

    def stepped(self, model: nn.Module, batch: Batch) -> None:
        flagged, size = batch.rows[self.gate.flagged[batch.rows]], self.recipe.batch_size
        self.queue = torch.cat([self.queue, flagged])
        if len(self.queue) >= size:
            rows, self.queue = self.queue[:size], self.queue[size:]
            self.unlearn(model, rows, batch)

    def unlearn(self, model: nn.Module, rows: Tensor, batch: Batch) -> None:
        """One step up the cross entropy of ``rows`` and all their views."""
        device, assigned = batch.images.device, self.optimizer
        assert assigned is not None
        images, labels = self.data.images[rows].to(device), self.data.labels[rows].to(device)
        views = (images, *self.views_of(images, rows.to(device), batch.epoch))
        drops = any(isinstance(module, nn.Dropout) for module in model.modules())
        with (
            batch.key.child("unlearn").ambient((device,)) if drops else nullcontext(),
            torch.autocast(device.type, torch.bfloat16, enabled=self.recipe.precision == "bfloat16"),
        ):
            loss = cross_entropy(model(torch.cat(views)), labels.repeat(len(views)))
        model.zero_grad()
        (-loss).backward()  # type: ignore[no-untyped-call]
        lr = self.recipe.schedule.lr(batch.step, self.total) * self.scale()
        self.regularise(model, batch.step, lr)
        assigned.param_groups[0]["lr"] = lr
        assigned.step()
        past = self.rate.memory if self.rate.kind == "average" and self.last is not None else 0.0
        self.last = past * (self.last or 0.0) + (1 - past) * float(loss.detach())

    def scale(self) -> float:
        """What the learning rate is multiplied by in the next unlearning step."""
        if self.rate.kind == "constant":
            return self.rate.constant
        return 1.0 if self.last is None else dynamic_scale(self.last, self.data.num_classes)
