"""Interleaved Ensemble Unlearning: what its second stage costs, in times of plain fine-tuning, in one run.

Of the same network, rows, views and steps: fine-tuning without a gate; stage 2, which skips the rows that the gate
flags and unlearns them; and stage 2 as the reference is built, which runs the poisoned module in every step, with a
graph, over both views, and the network over all rows, to multiply a part of what comes out by zero.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bench.measure import interleave, row, speedup
from bench.rows import Row
from bench.stacked import random_images
from poisonkit.data.augment import Augment
from poisonkit.data.views import Views
from poisonkit.defenses.training.gate import Gate
from poisonkit.defenses.training.interleaved import Interleaved, UnlearningRate
from poisonkit.models import ViT
from poisonkit.models.vit import VisionTransformer, first_blocks
from poisonkit.random import key
from poisonkit.train import Batch, Cosine, Recipe
from poisonkit.train.finetuning import FineTuning, fine_tune

ROUNDS = 3
ROWS = 512
# About the paper's share of poisoned rows, and of eight batches exactly one to unlearn
FLAGGED = 0.125


class Reference(Interleaved):
    """The same steps, built as the reference builds them."""

    def __init__(self, *arguments: object, module: VisionTransformer, **options: object) -> None:
        super().__init__(*arguments, **options)  # type: ignore[arg-type]
        self.module = module

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        views = self.views_of(batch.images, batch.rows, batch.epoch)
        mask = self.gate.learned[batch.rows].float()[:, None]
        total: Tensor = torch.zeros(())
        for view in views:  # the poisoned module sees the plain images, once for each view
            surest = self.module(batch.images).log_softmax(1)
            logits = surest + mask * model(view).log_softmax(1)
            total = total + cross_entropy(logits, batch.labels) / len(views)
        return total, logits


def bench() -> Iterator[Row]:
    """Every row of this bench, one thread."""
    for name, views in (("one_view", None), ("two_views", Views())):
        yield from second_stage(name, views)


def second_stage(name: str, views: Views | None) -> Iterator[Row]:
    data, model = random_images(ROWS, (3, 32, 32), 10), ViT(4, 96, 3, patch=4)
    recipe = Recipe(model, 1, 64, "adamw", Cosine(1e-4), weight_decay=0.05, augment=Augment(), channels_last=False)
    start = model.build(data.shape, 10, key(0))
    flagged = torch.arange(ROWS) < FLAGGED * ROWS
    gate = Gate(~flagged, flagged, data.labels)
    own = {"views": views, "clip": 3.0, "decay": (0.04, 0.1), "key": key(0)}
    module = first_blocks(start, 1, 10, key(1))

    def ours() -> Interleaved:
        return Interleaved(recipe, data, gate, UnlearningRate(), keep=False, **own)

    def reference() -> Reference:
        return Reference(recipe, data, gate, UnlearningRate(), keep=False, module=module, **own)

    candidates = {
        "plain": lambda: fine_tune(data, FineTuning(recipe, ROWS, **own), model=start),
        "stage 2": lambda: fine_tune(data, ours(), model=start),
        "reference": lambda: fine_tune(data, reference(), model=start),
    }
    times = interleave(candidates, ROUNDS)
    note = f"{model}, {ROWS} rows in batches of 64, {FLAGGED:.1%} flagged"
    for candidate, tag in (("stage 2", "of_plain"), ("reference", "reference_of_plain")):
        ratio = 1 / speedup(times, candidate, over="plain")
        yield row(f"ieu/cpu/{name}/{tag}", ratio, "ratio", ROUNDS, note, "lower")
