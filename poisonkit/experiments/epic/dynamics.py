"""What the figures of the EPIC paper show of a training: gradients of poisons, of the rows kept, and of clusters.

Yang, Liu and Mirzasoleiman, arXiv 2210.09671, sections 3.2 to 3.5. Gradients of single rows are those of the last
layer's weights, (p - y)⊗h.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy, normalize

from poisonkit.defenses import EPIC
from poisonkit.defenses.training.dropping import DropRows, Outputs, Subset, gathered, look
from poisonkit.defenses.training.epic import clusters
from poisonkit.models.features import evaluating, features
from poisonkit.random import Key
from poisonkit.types import ImageDataset, Victims

# the sizes of clusters that are told apart, each up to the next
SIZES = (1, 2, 3, 6, 11)


@dataclass(frozen=True, eq=False)
class Moment:
    """What there is to measure before an epoch: the network, the rows that were left, and those left after a look."""

    model: nn.Module
    data: ImageDataset
    epoch: int
    before: Tensor
    kept: Tensor


class Watched(DropRows):
    """Training on the rows of a subset, with numbers taken before every epoch.

    names    of the numbers
    measure  gives them; what it leaves out is NaN
    history  float64 [epochs, names]
    """

    def __init__(
        self, subset: Subset, epochs: int, names: Sequence[str], measure: Callable[[Moment], Mapping[str, float]]
    ) -> None:
        super().__init__(subset, lambda text: None)
        self.names, self.measure = list(names), measure
        self.history = torch.full((epochs, len(self.names)), torch.nan, dtype=torch.float64)

    def __repr__(self) -> str:
        return f"{super().__repr__()} and {self.names}"

    def state(self) -> Mapping[str, Tensor]:
        return {**super().state(), "history": self.history}

    def load(self, state: Mapping[str, Tensor]) -> None:
        super().load(state)
        self.history = state["history"]

    def rows(self, model: nn.Module, data: ImageDataset, epoch: int, key: Key) -> Tensor:
        before = self.subset.kept()
        kept = super().rows(model, data, epoch, key)
        for name, value in self.measure(Moment(model, data, epoch, before, kept)).items():
            self.history[epoch, self.names.index(name)] = value
        return kept


def last_layer(outputs: Outputs) -> Tensor:
    """The gradient of each row at the last layer's weights: float32 [n, K·d]."""
    return EPIC(proxy="weights").gradients(outputs)


def of_victims(model: nn.Module, goal: Victims) -> Tensor:
    """The last layer's gradient of the victims with the labels that the attacker wants, their mean: float32 [K·d]."""
    hidden, logits = features(model, goal.images)
    return last_layer(gathered(model, hidden, logits, goal.labels.to(logits.device))).mean(0)


def distances(model: nn.Module, data: ImageDataset, rows: Tensor, goal: Victims) -> Tensor:
    """How far the gradients of ``rows`` (int64 [P]) are from the victims': float32 [P]."""
    apart = last_layer(look(model, data, rows)) - of_victims(model, goal).to(data.device)
    return apart.square().sum(1).sqrt()


def similarities(model: nn.Module, data: ImageDataset, rows: Tensor, goal: Victims) -> tuple[float, float]:
    """The mean cosine of the gradients of ``rows``, two or more, with each other, and with the victims'."""
    found = last_layer(look(model, data, rows)).double()
    units, count = normalize(found), len(rows)
    mutual = (units.sum(0).square().sum() - units.square().sum()) / (count * (count - 1))  # of all pairs but (i, i)
    target = of_victims(model, goal).double().to(found.device)
    return float(mutual), float(cosine_similarity(found, target[None], dim=1).mean())


def mean_gradient(model: nn.Module, data: ImageDataset, rows: Tensor) -> Tensor:
    """The gradient of the mean cross entropy of ``rows`` as they are stored, by all that is trained: float64 [p]."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    device = trained[0].device
    total = torch.zeros(sum(map(torch.numel, trained)), dtype=torch.float64, device=device)
    with evaluating(model):
        for part in torch.split(rows.to(data.device), 512):
            images, labels = data.images[part].to(device), data.labels[part].to(device)
            loss = cross_entropy(model(images), labels, reduction="sum")
            total += torch.cat([slope.flatten() for slope in torch.autograd.grad(loss, trained)]).double()
    return total / max(1, len(rows))


def gradient_error(moment: Moment, key: Key) -> dict[str, float]:
    """The norms of the mean gradient of all rows and of those kept, and how far the latter is from the former.

    Beside it how far that of as many random rows is.
    """
    model, data, kept = moment.model, moment.data, moment.kept
    full = mean_gradient(model, data, torch.arange(len(data)))
    part = mean_gradient(model, data, kept) if len(kept) < len(data) else full
    drawn = key.permutation(len(data))[: len(kept)]
    other = mean_gradient(model, data, drawn) if len(kept) < len(data) else full
    return {
        "norm": float(full.norm()),
        "norm of the kept": float(part.norm()),
        "error of the kept": float((part - full).norm()),
        "error of random rows": float((other - full).norm()),
    }


def theorem(norms: Tensor, norms_of_kept: Tensor) -> dict[str, float]:
    """ρ and ∇max of Theorem 3.1 over the moments that were measured (float64 [moments] each).

    ρ is the largest change of the norm by what was dropped; ∇max the largest norm. The bound lies (2ρ∇max - ρ²) / 2µ
    above that of training on all rows, for the µ of the loss's PL* condition, which nobody knows.
    """
    rho, most = float((norms - norms_of_kept).abs().max()), float(norms.max())
    return {"ρ": rho, "∇max": most, "ρ / ∇max": rho / most, "2ρ∇max - ρ²": 2 * rho * most - rho**2}


def shares_by_size(method: EPIC, moment: Moment, poisons: Tensor) -> dict[str, float]:
    """The shares of ``poisons`` (bool [N]) and of clean rows, of those that were left, in clusters of each size."""
    rows = method.candidates(torch.full((len(moment.data),), 0).index_fill(0, moment.before, -1))
    outputs = look(moment.model, moment.data, rows)
    counts = torch.bincount(outputs.labels, minlength=moment.data.num_classes).tolist()
    k = method.per_class(counts, Key(0))
    sizes = clusters(method.gradients(outputs), outputs.labels, counts, k, method.similarity)[1].cpu()
    found = {}
    for who, mask in (("clean", ~poisons), ("poisons", poisons)):
        mine = sizes[mask[rows]]
        for low, high in zip(SIZES, (*SIZES[1:], len(moment.data) + 1), strict=True):
            if len(mine):
                found[column(who, low)] = float(((mine >= low) & (mine < high)).double().mean())
    return found


def column(who: str, low: int) -> str:
    """The name of a column: whose rows, in clusters from ``low`` rows on."""
    after = [size for size in SIZES if size > low]
    sizes = f"{low} or more" if not after else f"{low}" if after[0] == low + 1 else f"{low} to {after[0] - 1}"
    return f"{who}, clusters of {sizes}"
