"""A small checkpoint to fine-tune from, for who has no pretrained weights: trained on a clean split of some data.

Rotations as labels are of Gidaris, Singh and Komodakis, "Unsupervised Representation Learning by Predicting Image
Rotations", ICLR 2018, https://arxiv.org/abs/1803.07728.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from poisonkit.config import from_dict, to_dict
from poisonkit.data.files import written_by
from poisonkit.errors import require
from poisonkit.models.features import head
from poisonkit.random import Key
from poisonkit.train.checkpoints import load, save_tensors
from poisonkit.train.journal import Journal
from poisonkit.train.loop import new_model
from poisonkit.train.recipe import Recipe
from poisonkit.types import ImageDataset

Objective = Literal["labels", "rotations"]
TURNS = ("0°", "90°", "180°", "270°")


@dataclass(frozen=True, eq=False)
class Pretrained:
    """A trained network, and what it was trained on: reports of whatever begins from it must say so.

    model      in evaluation mode
    recipe     it was trained with
    objective  "labels", or "rotations", which asks for none
    shape      (C, H, W) of the images
    classes    names of what its head tells apart
    rows       int64 [n], those of the clean split in the training set they were taken from
    source     where the images come from
    """

    model: nn.Module
    recipe: Recipe
    objective: str
    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    rows: Tensor
    source: str

    def __str__(self) -> str:
        return f"pretrained on the {self.objective} of {len(self.rows):,} clean rows of {self.source}"

    def begin(self, num_classes: int, key: Key) -> nn.Module:
        """A copy of the network with a new last layer for ``num_classes``, drawn from ``key``."""
        model = deepcopy(self.model)
        with key.ambient():
            old = head(model)
            new = nn.Linear(old.in_features, num_classes).to(old.weight.device)
            nn.init.trunc_normal_(new.weight, std=0.02)
            nn.init.zeros_(new.bias)
        path = next(name for name, module in model.named_modules() if module is old)
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, new)
        return model

    def save(self, path: Path) -> None:
        """One safetensors file with the weights, the rows and, as metadata, everything else."""
        about = {
            "recipe": json.dumps(to_dict(self.recipe)),
            "objective": self.objective,
            "shape": json.dumps(self.shape),
            "classes": json.dumps(self.classes),
            "source": self.source,
        }
        weights = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        save_tensors(path, {**weights, "rows": self.rows}, about)


def load_pretrained(path: Path) -> Pretrained:
    """What :meth:`Pretrained.save` wrote. Raises DataError for any other file."""
    tensors, about = load(path)
    with written_by("`poisonkit pretrain`", path):
        recipe = from_dict(Recipe, json.loads(about["recipe"]))
        channels, height, width = json.loads(about["shape"])
        classes, objective, source = tuple(json.loads(about["classes"])), about["objective"], about["source"]
        rows, shape = tensors.pop("rows"), (channels, height, width)
        empty = ImageDataset(torch.zeros(0, *shape, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64), classes)
        model = new_model(recipe, empty, Key(0))
        model.load_state_dict({name.removeprefix("model."): tensor for name, tensor in tensors.items()})
    return Pretrained(model.eval(), recipe, objective, shape, classes, rows, source)


def clean_split(count: int, share: float, key: Key) -> tuple[Tensor, Tensor]:
    """Two disjoint sets of rows of ``count``, each in ascending order: int(share · count) to pretrain on, the rest."""
    require(0 < share < 1, "share", "a fraction in (0, 1)", share)
    order = key.child("split").permutation(count)
    size = int(share * count)
    require(size > 0, "share", f"one row or more of {count}", share)
    return order[:size].sort().values, order[size:].sort().values


def pretrain(
    data: ImageDataset,
    rows: Tensor,
    recipe: Recipe,
    *,
    source: str,
    objective: Objective = "labels",
    key: Key,
    journal: Journal | None = None,
) -> Pretrained:
    """A network trained on ``rows`` (int64 [n]) of ``data``, which ``source`` names; a journal makes it resume."""
    make: dict[str, Callable[[ImageDataset], ImageDataset]] = {"labels": lambda clean: clean, "rotations": turned}
    require(objective in make, "objective", " or ".join(map(repr, make)), repr(objective))
    clean = make[objective](data.take(rows))
    if objective == "rotations" and recipe.augment:  # a mirrored quarter turn is the opposite one
        recipe = replace(recipe, augment=replace(recipe.augment, flip=False))
    model = (journal or Journal()).fit(clean, recipe, key=key)
    return Pretrained(model, recipe, objective, data.shape, clean.classes, rows, source)


def turned(data: ImageDataset) -> ImageDataset:
    """Every square image of ``data`` in all four rotations, labelled by them."""
    _, height, width = data.shape
    require(height == width, "images", "square, to be turned", f"{height}x{width}")
    images = torch.cat([data.images.rot90(turn, (2, 3)) for turn in range(4)])
    return ImageDataset(images, torch.arange(4, device=data.device).repeat_interleave(len(data)), TURNS)
