"""Recipes that suit each data set, and the experiments that can be asked for by name."""

from __future__ import annotations

from dataclasses import dataclass

from poisonkit.attacks import BadNetsWhite
from poisonkit.data.augment import Augment
from poisonkit.defenses import DPA
from poisonkit.defenses.certified import Aggregation
from poisonkit.models import ResNet
from poisonkit.train import OneCycle, Recipe
from poisonkit.types import Attack

#: The recipe of a data set that ``poisonkit run`` starts from. Where a data set has no entry, the recipe of the paper
#: stands: ResNet-18 at full width is the default network.
RECIPES: dict[str, Recipe] = {
    "digits": Recipe(
        model=ResNet(8, 32, stem="small"),
        epochs=30,
        batch_size=16,
        schedule=OneCycle(0.01, 0.1, 0.00005),
        augment=Augment(crop=1, flip=False),
    ),
    "digits-32": Recipe(
        model=ResNet(8, 8, stem="small"),
        epochs=8,
        batch_size=32,
        schedule=OneCycle(0.02, 0.2, 0.0001),
        augment=Augment(crop=2, flip=False),
    ),
    "cifar10": Recipe(
        model=ResNet(8, 16, stem="small"), epochs=10, batch_size=64, schedule=OneCycle(0.02, 0.2), augment=Augment()
    ),
    "imagenet64": Recipe(model=ResNet(50, 128), batch_size=512),
}


@dataclass(frozen=True)
class Experiment:
    """A named comparison: what is attacked with, and what defends."""

    summary: str
    source: str
    data: str
    attack: Attack
    rate: float
    defense: Aggregation
    recipe: Recipe


#: Experiments that have a name
EXPERIMENTS: dict[str, Experiment] = {
    "demo": Experiment(
        summary="a one-pixel backdoor in handwritten digits, undefended and with DPA",
        source="Wang and Feizi 2023, arXiv 2306.16415",
        data="digits",
        attack=BadNetsWhite(target=0, size=1),
        rate=0.03,
        defense=DPA(partitions=16),
        recipe=RECIPES["digits"],
    ),
}
