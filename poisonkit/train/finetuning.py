"""Fine-tuning as vision transformers get it: views of its own, clipped gradients, decay of weights that grows."""

from __future__ import annotations

from dataclasses import replace
from math import cos, pi

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from poisonkit.data.views import Views
from poisonkit.random import Key
from poisonkit.train.journal import Journal
from poisonkit.train.procedure import Batch, Procedure
from poisonkit.train.recipe import Recipe
from poisonkit.types import ImageDataset


class FineTuning(Procedure):
    """Every step learns all views of its images, and may clip and decay otherwise than the recipe: :func:`fine_tune`.

    recipe  of the training, whose own augmentation makes the view where ``views`` is None
    rows    of the training set, how many
    views   of an image
    clip    largest Euclidean norm of a parameter's gradient; None: any
    decay   decoupled weight decay of the first and the last step, along half a cosine, of what has two dimensions or
            more; None: the recipe's, of everything
    key     of the training
    """

    def __init__(
        self,
        recipe: Recipe,
        rows: int,
        *,
        views: Views | None = None,
        clip: float | None = None,
        decay: tuple[float, float] | None = None,
        key: Key,
    ) -> None:
        self.recipe = replace(recipe, weight_decay=0.0) if decay else recipe
        self.views, self.clip, self.decay, self.key = views, clip, decay, key
        self.total = recipe.epochs * -(-rows // recipe.batch_size)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.recipe!r}, {self.views!r}, {self.clip}, {self.decay}, {self.key!r})"

    def views_of(self, images: Tensor, rows: Tensor, epoch: int) -> tuple[Tensor, ...]:
        """What is learned of ``images`` [B, C, H, W], which lie at ``rows`` of the training set."""
        key = self.key.child("augment", epoch)  # as the training loop has it
        if self.views:
            return self.views(images, rows, key)
        return (self.recipe.augment(images, rows, key) if self.recipe.augment else images,)

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        views = self.views_of(batch.images, batch.rows.to(batch.images.device), batch.epoch)
        logits = model(torch.cat(views))
        loss = cross_entropy(logits, batch.labels.repeat(len(views)), label_smoothing=batch.smoothing)
        return loss, logits[: len(batch.labels)]

    def gradients(self, model: nn.Module, batch: Batch) -> None:
        self.regularise(model, batch.step, self.recipe.schedule.lr(batch.step, self.total))

    @torch.no_grad()
    def regularise(self, model: nn.Module, step: int, lr: float) -> None:
        """Clip the gradients, and decay the weights as much as a step of rate ``lr`` does."""
        trained = [parameter for parameter in model.parameters() if parameter.grad is not None]
        gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
        if not gradients:
            return
        if self.clip is not None:
            norms = torch.stack(torch._foreach_norm(gradients))
            torch._foreach_mul_(gradients, list((self.clip / (norms + 1e-6)).clamp(max=1).unbind()))
        if self.decay is not None:
            first, last = self.decay
            decay = last + (first - last) / 2 * (1 + cos(pi * step / self.total))
            torch._foreach_mul_([p for p in trained if p.ndim > 1], 1 - lr * decay)


def fine_tune(
    data: ImageDataset, procedure: FineTuning, *, model: nn.Module | None, journal: Journal | None = None
) -> nn.Module:
    """:func:`poisonkit.train.fit` by ``procedure``, which makes its views of plain images."""
    plain = replace(procedure.recipe, augment=None)
    return (journal or Journal()).fit(data, plain, key=procedure.key, model=model, procedure=procedure)
