"""Gradient shaping: steps whose gradient is clipped and blurred by noise, so that no few rows decide them.

Hong, Chandrasekaran, Kaya, Dumitraş and Papernot, "On the Effectiveness of Mitigating Data Poisoning Attacks with
Gradient Shaping", 2020, https://arxiv.org/abs/2002.11497. Per sample it is DP-SGD: Abadi et al., "Deep Learning with
Differential Privacy", CCS 2016, https://arxiv.org/abs/1607.00133, Algorithm 1, but for how batches are drawn: a
permutation, not each row by a coin of its own, so that the usual accounting of privacy does not apply.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from poisonkit.defenses.training.per_sample import PER_SAMPLE
from poisonkit.errors import MissingError, require
from poisonkit.random import Key
from poisonkit.train import Batch, Journal, Procedure, Recipe, new_model
from poisonkit.types import ImageDataset

_CHUNK = 1 << 26  # numbers of the gradients of rows held at once


@dataclass(frozen=True)
class DPSGD:
    """Clips gradients and adds normal noise to them.

    clip   largest norm of a gradient, over all parameters together
    noise  standard deviation of what is added to each number of the clipped gradient, as a multiple of ``clip``
    mode   "batch": the gradient of a step, as Geiping et al. (arXiv 2102.13624) compare with; "per_sample": that of
           every row, before their noisy sum is divided by the size of the batch
    per_sample  what gives the gradients of rows: "func", torch.func; "opacus", which is to be installed
    """

    source: ClassVar[str] = "Hong et al. 2020, arXiv 2002.11497"

    clip: float = 1.0
    noise: float = 0.01
    mode: Literal["batch", "per_sample"] = "batch"
    per_sample: Literal["func", "opacus"] = "func"

    def __post_init__(self) -> None:
        require(self.clip > 0, "clip", "above 0", self.clip)
        require(self.noise >= 0, "noise", "0 or more", self.noise)
        require(self.mode in ("batch", "per_sample"), "mode", "batch or per_sample", self.mode)
        require(self.per_sample in PER_SAMPLE, "per_sample", " or ".join(PER_SAMPLE), self.per_sample)
        there = self.per_sample != "opacus" or find_spec("opacus") is not None
        rule, remedy = "installed for per_sample opacus", "pip install 'poisonkit[opacus]'"
        require(there, "opacus", rule, "no module", remedy, MissingError)

    def check_model(self, model: nn.Module, data: ImageDataset) -> None:
        """Raise ArgumentError where each row is to have a gradient, and a batch norm ties it to the others.

        And where Opacus is to give it, and has no rule for a layer.
        """
        tied = [name for name, module in model.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        remedy = "take a network without, such as vgg16, convnet3 or a vit, or mode batch"
        alone = self.mode == "batch" or not tied
        require(alone, "model", "without batch norms for mode per_sample", ", ".join(tied[:3]), remedy)
        if self.mode == "per_sample" and self.per_sample == "opacus":
            opacus: Any = import_module("opacus")
            taken = not opacus.GradSampleModule.validate(module=model, strict=False)
            require(taken, "model", "one that Opacus takes", type(model).__name__, "take per_sample func")

    def __call__(
        self,
        data: ImageDataset,
        recipe: Recipe,
        *,
        key: Key,
        model: nn.Module | None = None,
        journal: Journal | None = None,
    ) -> nn.Module:
        """Raises ArgumentError for a network with batch norms per sample: its rows have no gradient of their own."""
        shaped: Procedure = Shaped(self.clip, self.noise)
        if self.mode == "per_sample":
            self.check_model(model or new_model(recipe, data, key), data)
            shaped = ShapedPerSample(self.clip, self.noise, self.per_sample)
        return (journal or Journal()).fit(data, recipe, key=key, model=model, procedure=shaped)


@dataclass(frozen=True)
class Shaped(Procedure):
    """Clips the gradient of the batch and adds the noise."""

    clip: float
    noise: float

    def gradients(self, model: nn.Module, batch: Batch) -> None:
        free = [parameter for parameter in model.parameters() if parameter.grad is not None]
        nn.utils.clip_grad_norm_(free, self.clip)
        self.blur(free, 1.0, batch.key)

    def blur(self, free: Iterable[nn.Parameter], share: float, key: Key) -> None:
        """Add the noise to the gradients of ``free``, times ``share``."""
        for i, parameter in enumerate(free):
            assert parameter.grad is not None
            generator = key.child("noise", i).generator(parameter.device)
            drawn = torch.randn(parameter.shape, generator=generator, device=parameter.device)
            parameter.grad.add_(drawn, alpha=self.noise * self.clip * share)


@dataclass(frozen=True)
class ShapedPerSample(Shaped):
    """Clips the gradient of every row, and adds the noise to their sum."""

    per_sample: str = "func"

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            loss, logits = super().loss(model, batch)
        return loss.requires_grad_(), logits  # what the loop takes back from it ends here

    def gradients(self, model: nn.Module, batch: Batch) -> None:
        free = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        means = {name: torch.zeros_like(parameter) for name, parameter in free.items()}
        size = max(1, _CHUNK // sum(parameter.numel() for parameter in free.values()))
        of_rows = PER_SAMPLE[self.per_sample](model, batch.smoothing)
        with batch.key.child("dropout").ambient((batch.images.device,)):
            for images, labels in zip(torch.split(batch.images, size), torch.split(batch.labels, size), strict=True):
                found = of_rows(images, labels)
                norms = torch.stack([each.flatten(1).square().sum(1) for each in found.values()]).sum(0).sqrt()
                kept = (self.clip / norms).clamp(max=1) / len(batch.labels)
                for name, mean in means.items():
                    mean += torch.tensordot(kept, found[name], 1)
        for name, parameter in free.items():
            parameter.grad = means[name]
        self.blur(free.values(), 1 / len(batch.labels), batch.key)
