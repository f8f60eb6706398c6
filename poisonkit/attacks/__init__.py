"""Attacks: a training set and a budget in, a Poison out. One module per paper."""

from poisonkit.attacks.badnets import BadNetsWhite
from poisonkit.attacks.centre_patch import CentrePatch
from poisonkit.types import Attack

ATTACKS: dict[str, type[Attack]] = {
    "centre_patch": CentrePatch,
    "badnets_white": BadNetsWhite,
}

__all__ = ["ATTACKS", "BadNetsWhite", "CentrePatch"]
