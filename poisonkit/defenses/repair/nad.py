"""Neural Attention Distillation: a fine-tuned copy teaches the network where to look.

Yige Li, Xixiang Lyu, Nodens Koren, Lingjuan Lyu, Bo Li, Xingjun Ma, "Neural Attention Distillation: Erasing Backdoor
Triggers from Deep Neural Networks", ICLR 2021, arXiv 2101.05930, section 3.

The teacher is the network after fine-tuning on the clean images. With A(F) = Σ_c |F_c|², the attention over the places
of a layer's output F, the student minimises on the same images (equations 3 and 4)

    cross entropy + Σ_l β_l · mean over images of ‖A_l(teacher) / ‖A_l(teacher)‖ - A_l(student) / ‖A_l(student)‖‖²

The released code takes the mean over places too, with β = 500, 1000, 1000. On its maps of 32×32, 16×16 and 8×8 places
that is β = 0.5, 4, 16 here, where the weight of a layer does not depend on its size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from poisonkit.defenses.repair.tuning import TUNING, tune
from poisonkit.errors import require
from poisonkit.perturb import frozen
from poisonkit.random import Key
from poisonkit.train import Batch, Journal, Procedure, Recipe, Step
from poisonkit.train.checkpoints import digest
from poisonkit.types import ImageDataset


def attention(output: Tensor) -> Tensor:
    """Where a layer looks, of norm 1 for each image: maps [B, C, H, W] to [B, H·W], tokens [B, T, d] to [B, T]."""
    squares = output.square()
    return normalize(squares.sum(1).flatten(1) if output.ndim == 4 else squares.sum(2), dim=1)


def stages(model: nn.Module, image: Tensor, count: int) -> list[str]:
    """The names of up to ``count`` layers to compare, first to last, found by passing ``image`` (uint8 [1, C, H, W]).

    In a network of tokens: of its blocks, the largest set of modules of one kind and one parent, those that end equal
    shares of the depth. In any other: the last layers of each size of feature map, of which the last ``count`` sizes.
    Raises ArgumentError where no layer gives either.
    """
    maps: dict[torch.Size, str] = {}
    blocks: dict[tuple[str, type], list[str]] = {}

    def note(name: str, module: nn.Module, output: object) -> None:
        # What adaptive pooling gives is of a size of its own, and may be larger than what it takes
        pooled = isinstance(module, nn.AdaptiveAvgPool2d)
        if isinstance(output, Tensor) and output.ndim == 4 and output[0, 0].numel() > 1 and not pooled:
            maps[output.shape[2:]] = name
        if isinstance(output, Tensor) and output.ndim == 3 and output.shape[1] > 1:
            blocks.setdefault((name.rpartition(".")[0], type(module)), []).append(name)

    hooks = [
        module.register_forward_hook(lambda module, _, output, name=name: note(name, module, output))
        for name, module in model.named_modules()
        if name
    ]
    try:
        with frozen(model), torch.no_grad():
            model(image)
    finally:
        for hook in hooks:
            hook.remove()
    if blocks:
        names = max(blocks.values(), key=lambda names: (len(names), -names[0].count(".")))
        count = min(count, len(names))
        return [names[-(-len(names) * (i + 1) // count) - 1] for i in range(count)]
    require(len(maps) > 0, "model", "one with feature maps or tokens to compare", type(model).__name__)
    return list(maps.values())[-count:]


@contextmanager
def attended(model: nn.Module, names: Sequence[str]) -> Iterator[Mapping[str, Tensor]]:
    """The attention of the layers ``names`` at every forward pass in the block, by name."""
    seen: dict[str, Tensor] = {}
    hooks = [
        model.get_submodule(name).register_forward_hook(
            lambda module, _, output, name=name: seen.__setitem__(name, attention(output))
        )
        for name in names
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@dataclass(frozen=True, eq=False)
class _Distillation(Procedure):
    """Training beside a ``teacher``, whose attention at the layers ``weights`` names is asked for."""

    teacher: nn.Module
    weights: Mapping[str, float]

    def __repr__(self) -> str:
        return f"Distillation({self.weights}, {digest(self.teacher.state_dict())})"

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        with attended(model, list(self.weights)) as student:
            logits = model(batch.images)
        with attended(self.teacher, list(self.weights)) as teacher, torch.no_grad():
            self.teacher(batch.images)
        loss = cross_entropy(logits, batch.labels, label_smoothing=batch.smoothing)
        for name, weight in self.weights.items():
            loss = loss + weight * (student[name] - teacher[name]).square().sum(1).mean()
        return loss, logits


@dataclass(frozen=True)
class NAD:
    """Fine-tune a teacher, then distil its attention into the network.

    betas    the weight of each layer compared, first to last; of fewer layers, the last of them
    layers   the layers to compare, by name; none: as :func:`stages` finds them, one for each weight
    teacher  how the teacher is fine-tuned; the network a recipe names is not used, since there is one
    recipe   how the student is
    """

    source: ClassVar[str] = "Li et al., ICLR 2021, arXiv 2101.05930"

    betas: tuple[float, ...] = (0.5, 4.0, 16.0)
    layers: tuple[str, ...] = ()
    teacher: Recipe = field(default_factory=lambda: replace(TUNING, epochs=10))
    recipe: Recipe = field(
        default_factory=lambda: replace(TUNING, schedule=Step(0.1, (0.1,)), nesterov=True, weight_decay=1e-4)
    )

    def __call__(self, model: nn.Module, clean: ImageDataset, *, key: Key, journal: Journal | None = None) -> nn.Module:
        """The student."""
        journal = journal or Journal()
        home = next(model.parameters()).device
        names = self.layers or stages(model, clean.images[:1].to(home), len(self.betas))
        require(len(names) <= len(self.betas), "layers", f"at most {len(self.betas)}, one for each beta", len(names))
        weights = dict(zip(names, self.betas[-len(names) :], strict=True))
        teacher = tune(model, clean, self.teacher, key=key.child("teacher"), journal=journal.stage("teacher"))
        distillation = _Distillation(teacher, weights)
        student = journal.stage("student")
        return tune(model, clean, self.recipe, key=key.child("student"), journal=student, procedure=distillation)
