"""Reconstructive Neuron Pruning: the filters that a network which unlearned the clean images can do without.

Yige Li, Xixiang Lyu, Xingjun Ma, Nodens Koren, Lingjuan Lyu, Bo Li, Yu-Gang Jiang, "Reconstructive Neuron Pruning for
Backdoor Defense", ICML 2023, arXiv 2305.14876.

Three steps on the clean images D, for a network f of weights θ:

    unlearn   θ' = arg max_θ mean CE(f(x; θ), y) over D, until the accuracy on D is at most ``floor``
    recover   m = arg min over [0, 1]^n of mean CE(f(x; m ⊙ θ'), y) over D, a number for each filter
    prune     the filters of θ, as it was, whose m is at most a threshold

A filter is a channel of a normalisation layer, whose weight m scales and pruning sets to 0, as in the released code. In
a network without such layers, as a vision transformer, it is a row of the weights of a convolution or a linear layer.
That code prints what thresholds up to 0.9 do to clean and triggered images; here clean ones choose among the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

from poisonkit.defenses.repair.tuning import TUNING, tune
from poisonkit.errors import require
from poisonkit.metrics import clean_accuracy
from poisonkit.models.features import head
from poisonkit.random import Key
from poisonkit.train import Batch, Journal, Procedure, Recipe, Step, train_epoch
from poisonkit.train.checkpoints import digest
from poisonkit.train.loop import deterministic, new_optimizer
from poisonkit.types import ImageDataset

THRESHOLDS = tuple(step / 20 for step in range(19))


def filtering(model: nn.Module) -> list[nn.Module]:
    """The layers whose filters are pruned, in the order of the network; the last layer is none of them."""
    norms: tuple[type[nn.Module], ...] = (
        nn.modules.batchnorm._BatchNorm,
        nn.modules.instancenorm._InstanceNorm,
        nn.GroupNorm,
    )
    found = [each for each in model.modules() if isinstance(each, norms) and isinstance(each.weight, nn.Parameter)]
    if found:
        return found
    last = head(model)
    return [each for each in model.modules() if isinstance(each, nn.Conv2d | nn.Linear) and each is not last]


@torch.no_grad()
def without(model: nn.Module, masks: Sequence[Tensor], threshold: float) -> nn.Module:
    """A copy of ``model``, in evaluation mode, without the filters whose mask is at most ``threshold``."""
    pruned = deepcopy(model).eval()
    for layer, mask in zip(filtering(pruned), masks, strict=True):
        layer.get_parameter("weight")[mask <= threshold] = 0
    return pruned


@dataclass(frozen=True)
class RNP:
    """Unlearn the clean images, recover them with a mask of the filters, and prune the filters that stay masked.

    floor       accuracy on the clean images, of an epoch as it was trained on, at which unlearning ends
    tolerance   share of the accuracy on the clean images that pruning may cost: it decides the threshold
    unlearning  how to climb the loss, and for how many epochs at most; the network a recipe names is not used
    recovering  how to find the mask; its rate is the paper's 0.2 times the 0.2 that weighs the loss there
    """

    source: ClassVar[str] = "Li et al., ICML 2023, arXiv 2305.14876"

    floor: float = 0.2
    tolerance: float = 0.1
    unlearning: Recipe = field(default_factory=lambda: replace(TUNING, schedule=Step(0.01, (0.5,))))
    recovering: Recipe = field(default_factory=lambda: replace(TUNING, schedule=Step(0.04, ()), weight_decay=0.0))

    def __post_init__(self) -> None:
        require(0 <= self.floor < 1, "floor", "a share in [0, 1)", self.floor)
        require(0 <= self.tolerance < 1, "tolerance", "a share in [0, 1)", self.tolerance)

    def __call__(self, model: nn.Module, clean: ImageDataset, *, key: Key, journal: Journal | None = None) -> nn.Module:
        """``model`` without the filters; noted are the ``mask`` of all of them, float [n], and which are ``pruned``."""
        journal = journal or Journal()
        unlearned = self.unlearn(model, clean, key=key.child("unlearn"), journal=journal.stage("unlearned"))
        masks = self.recover(unlearned, clean, key=key.child("recover"), journal=journal.stage("recovered"))
        mended, least = deepcopy(model).eval(), (1 - self.tolerance) * clean_accuracy(model, clean)
        mask = torch.cat(masks)
        journal.notes["mask"], journal.notes["pruned"] = mask, torch.zeros_like(mask, dtype=torch.bool)
        for threshold in THRESHOLDS:
            pruned = without(model, masks, threshold)
            if clean_accuracy(pruned, clean) < least:
                break
            mended, journal.notes["pruned"] = pruned, mask <= threshold
        journal.say(f"{int(journal.notes['pruned'].sum())} of {len(mask)} filters pruned")
        return mended

    def unlearn(self, model: nn.Module, clean: ImageDataset, *, key: Key, journal: Journal) -> nn.Module:
        """A copy of ``model`` that climbed the loss of the clean images."""
        require(len(clean) > 0, "clean", "1 or more images", 0)
        recipe, unlearned = self.unlearning, deepcopy(model)
        home, optimizer = next(unlearned.parameters()).device, new_optimizer(unlearned, recipe)
        about = {"recipe": recipe, "key": key, "start": digest(model.state_dict()), "data": clean}
        with deterministic(home):
            for epoch in journal.epochs(recipe.epochs, unlearned, optimizer, **about):
                done = train_epoch(unlearned, optimizer, clean, recipe, key=key, epoch=epoch, procedure=_Ascent())
                if journal.on_epoch:
                    journal.on_epoch(done)
                if done.accuracy <= self.floor:
                    break
        return unlearned

    def recover(self, unlearned: nn.Module, clean: ImageDataset, *, key: Key, journal: Journal) -> list[Tensor]:
        """For each of the layers of :func:`filtering` the mask of its filters, float [n] in [0, 1]."""
        masked = deepcopy(unlearned).requires_grad_(False)
        for layer in filtering(masked):
            register_parametrization(layer, "weight", _Mask(layer.get_parameter("weight")))
        recovered = tune(masked, clean, self.recovering, key=key, journal=journal, procedure=_Recovery())
        return [module.values.detach() for module in recovered.modules() if isinstance(module, _Mask)]


class _Mask(nn.Module):
    """A number for each filter, by which its weights are multiplied."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.ones(len(weight), device=weight.device))

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.values.view(-1, *[1] * (weight.ndim - 1))


class _Ascent(Procedure):
    """Training that climbs the loss."""

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        loss, logits = super().loss(model, batch)
        return -loss, logits


class _Recovery(Procedure):
    """Training of masks, which stay between 0 and 1."""

    def stepped(self, model: nn.Module, batch: Batch) -> None:
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data.clamp_(0, 1)
