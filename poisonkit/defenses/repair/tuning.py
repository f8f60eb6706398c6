"""Fine-tuning on the few clean images, with which most repairs end."""

from __future__ import annotations

from torch import nn

from poisonkit.errors import require
from poisonkit.random import Key
from poisonkit.train import Cosine, Journal, Procedure, Recipe
from poisonkit.types import ImageDataset

# For a few hundred images: enough steps to move a network, at a rate that does not undo what it knows
TUNING = Recipe(epochs=20, batch_size=64, schedule=Cosine(0.05, warmup=0.1))


def tune(
    model: nn.Module,
    clean: ImageDataset,
    recipe: Recipe,
    *,
    key: Key,
    journal: Journal,
    procedure: Procedure | None = None,
) -> nn.Module:
    """A copy of ``model``, where it is, trained further on ``clean`` by ``recipe``, whose own network is not used."""
    require(len(clean) > 0, "clean", "1 or more images", 0)
    home = next(model.parameters()).device
    return journal.fit(clean, recipe, key=key, model=model, procedure=procedure, device=home)
