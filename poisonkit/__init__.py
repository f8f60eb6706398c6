"""poisonkit trains, repairs, certifies and measures image classifiers when some of the training data is poisoned."""

from poisonkit import attacks, certificates, data, defenses, engine, metrics, models, ops, train, triggers
from poisonkit.errors import PoisonkitError
from poisonkit.random import Key, key
from poisonkit.types import Backdoor, Budget, Certificate, ImageDataset, Poison, Victims

__all__ = [
    "Backdoor",
    "Budget",
    "Certificate",
    "ImageDataset",
    "Key",
    "Poison",
    "PoisonkitError",
    "Victims",
    "attacks",
    "certificates",
    "data",
    "defenses",
    "engine",
    "key",
    "metrics",
    "models",
    "ops",
    "train",
    "triggers",
]
