"""A recipe is plain values that check themselves."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError

import pytest

from poisonkit import config
from poisonkit.data.augment import Augment
from poisonkit.errors import ArgumentError
from poisonkit.models import ResNet
from poisonkit.train import Cosine, OneCycle, Recipe, Step

RECIPES = [
    Recipe(),
    Recipe(ResNet(50, 128), schedule=OneCycle(momenta=(0.85, 0.95)), augment=None),
    Recipe(schedule=Step(), augment=Augment(2, flip=False), precision="bfloat16"),
    Recipe(schedule=Cosine(), nesterov=True),
]


@pytest.mark.parametrize("recipe", RECIPES, ids=repr)
def test_goes_to_json_and_back(recipe: Recipe) -> None:
    again = config.from_dict(Recipe, json.loads(json.dumps(config.to_dict(recipe))))
    assert again == recipe
    assert repr(again) == repr(recipe)


def test_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        Recipe().epochs = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"batch_size": 1},
        {"momentum": 1.0},
        {"momentum": 0.0, "nesterov": True},
        {"weight_decay": -1.0},
        {"label_smoothing": 1.0},
        {"precision": "float16"},
    ],
)
def test_rejects(wrong: dict[str, object]) -> None:
    with pytest.raises(ArgumentError, match=f"{next(iter(wrong))} must be"):
        Recipe(**wrong)  # type: ignore[arg-type]
