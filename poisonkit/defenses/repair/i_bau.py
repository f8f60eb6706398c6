"""I-BAU: adversarial unlearning of backdoors, a minimax problem solved with implicit hypergradients.

Yi Zeng, Si Chen, Won Park, Z. Morley Mao, Ming Jin, Ruoxi Jia, "Adversarial Unlearning of Backdoors via Implicit
Hypergradient", ICLR 2022, arXiv 2110.03735, sections 3 and 4, with the settings of the authors' code.

One perturbation δ of all images, of bounded norm, stands for the trigger. It minimises g(δ, θ) = -CE(f(x + δ), f(x)) +
penalty · ‖δ‖², and the weights θ minimise H(δ(θ), θ), the cross entropy of images of which some carry it. With a step
Φ(δ) = δ - η ∇g(δ), whose fixed point δ(θ) is taken to be,

    dH/dθ = ∂H/∂θ + (∂Φ/∂θ)ᵀ v      v = Σ_{i<K} ((∂Φ/∂δ)ᵀ)^i ∂H/∂δ

Each product with a second derivative is taken over a few images at a time, and its graph is let go before the next:
memory is that of a backward pass, twice, of ``at_once`` images, whatever the data and K.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.autograd import grad
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy

from poisonkit.defenses.repair.implicit import implicit_gradient
from poisonkit.defenses.repair.tuning import tune
from poisonkit.errors import require
from poisonkit.perturb import frozen
from poisonkit.random import Key
from poisonkit.train import Batch, Journal, Procedure, Recipe, Step
from poisonkit.types import ImageDataset


@dataclass(eq=False)
class _Unlearning(Procedure):
    """An epoch is a round: δ is found anew, then the weights take a pass against it."""

    about: IBAU
    delta: Tensor | None = None
    first: Tensor | None = None

    def __repr__(self) -> str:
        return repr(self.about)

    def inner(self, model: nn.Module, images: Tensor) -> list[Callable[[Tensor], Tensor]]:
        """g on ``images``, in parts of ``at_once``."""
        with torch.no_grad():
            parts = [(part, model(part).argmax(1)) for part in torch.split(images, self.about.at_once)]

        def of(part: Tensor, labels: Tensor) -> Callable[[Tensor], Tensor]:
            share = len(part) / len(images)
            return lambda delta: (
                share * (self.about.penalty * delta.square().sum() - cross_entropy(model(part + 255 * delta), labels))
            )

        return [of(part.float(), labels) for part, labels in parts]

    def rows(self, model: nn.Module, data: ImageDataset, epoch: int, key: Key) -> None:
        home = next(model.parameters()).device
        drawn = key.child("inner", epoch).below((len(data),) * self.about.batch_size, torch.arange(self.about.steps))
        batches = [data.images[rows.to(data.device)].to(home) for rows in drawn]
        delta = torch.zeros(data.shape, device=home, requires_grad=True)
        bound = self.about.rms / 255 * delta.numel() ** 0.5
        with frozen(model):
            for batch in batches:
                slope = torch.stack([grad(part(delta), delta)[0] for part in self.inner(model, batch)]).sum(0)
                moved = (delta - self.about.inner_rate * slope).detach()
                delta = (moved * (bound / moved.norm().clamp(min=bound))).requires_grad_(True)
        self.delta, self.first = delta, batches[0]

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        model.eval()  # the running statistics stay as they were
        assert self.delta is not None
        carriers = max(1, round(self.about.share * len(batch.images)))
        images = batch.images.float()
        logits = model(torch.cat([images[:carriers] + 255 * self.delta, images[carriers:]]))
        return cross_entropy(logits, batch.labels), logits

    def gradients(self, model: nn.Module, batch: Batch) -> None:
        delta, first = self.delta, self.first
        assert delta is not None
        assert delta.grad is not None
        assert first is not None
        free = [parameter for parameter in model.parameters() if parameter.grad is not None]
        about = self.about
        # Of the ways to compute attention, the plain one alone can be differentiated twice
        with sdpa_kernel(SDPBackend.MATH):
            parts = self.inner(model, first)
            missing = implicit_gradient(parts, delta, free, delta.grad, steps=about.terms, rate=about.step)
        for parameter, rest in zip(free, missing, strict=True):
            assert parameter.grad is not None
            parameter.grad += rest
        delta.grad = None


@dataclass(frozen=True)
class IBAU:
    """Unlearn the worst perturbation, again and again.

    rounds      of finding δ and taking a pass over the clean images against it
    rate        of Adam (Kingma and Ba, arXiv 1412.6980) on the weights
    batch_size  images of a step, of δ's and of the weights'
    share       of the images of a step that carry δ, at least one
    steps       of gradient descent on δ in a round, from 0
    inner_rate  of these steps, in which a pixel is 0 to 1
    rms         of δ at most, in pixel steps: 46 is a norm of 10 on 3×32×32 pixels in [0, 1]
    penalty     on ‖δ‖²
    terms       K, the terms of the series
    step        η, the step of Φ
    at_once     images of which second derivatives are taken together: what memory grows with
    """

    source: ClassVar[str] = "Zeng et al., ICLR 2022, arXiv 2110.03735"

    rounds: int = 5
    rate: float = 0.001
    batch_size: int = 100
    share: float = 0.01
    steps: int = 10
    inner_rate: float = 10.0
    rms: float = 46.0
    penalty: float = 0.001
    terms: int = 5
    step: float = 0.1
    at_once: int = 50

    def __post_init__(self) -> None:
        require(0 <= self.share <= 1, "share", "a fraction in [0, 1]", self.share)
        require(self.at_once >= 1, "at_once", "1 or more images", self.at_once)

    def __call__(self, model: nn.Module, clean: ImageDataset, *, key: Key, journal: Journal | None = None) -> nn.Module:
        """``model`` after all rounds; its batch norms keep their statistics."""
        journal = journal or Journal()
        adam = Recipe(
            epochs=self.rounds,
            batch_size=self.batch_size,
            optimizer="adamw",
            schedule=Step(self.rate, ()),
            weight_decay=0.0,
            augment=None,
        )
        return tune(model, clean, adam, key=key, journal=journal, procedure=_Unlearning(self))
