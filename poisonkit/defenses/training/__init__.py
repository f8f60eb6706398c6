"""Defenses that train otherwise: dirty data in, a network out."""

from poisonkit.defenses.families import Training
from poisonkit.defenses.training.abl import ABL
from poisonkit.defenses.training.adversarial_poisoning import AdversarialPoisoning
from poisonkit.defenses.training.adversarial_training import AdversarialTraining
from poisonkit.defenses.training.dp_sgd import DPSGD
from poisonkit.defenses.training.droppers import HighestLoss, LowestConfidence, RandomSubset
from poisonkit.defenses.training.epic import EPIC
from poisonkit.defenses.training.gcl import GCL
from poisonkit.defenses.training.ieu import IEU
from poisonkit.defenses.training.mixup import Mixup

#: Every defense of this family, by the name that ``poisonkit run --defense`` takes
TRAINING: dict[str, type[Training]] = {
    "abl": ABL,
    "ieu": IEU,
    "adversarial_poisoning": AdversarialPoisoning,
    "adversarial_training": AdversarialTraining,
    "dp_sgd": DPSGD,
    "epic": EPIC,
    "gcl": GCL,
    "highest_loss": HighestLoss,
    "lowest_confidence": LowestConfidence,
    "mixup": Mixup,
    "random_subset": RandomSubset,
}

__all__ = [
    "ABL",
    "DPSGD",
    "EPIC",
    "GCL",
    "IEU",
    "TRAINING",
    "AdversarialPoisoning",
    "AdversarialTraining",
    "HighestLoss",
    "LowestConfidence",
    "Mixup",
    "RandomSubset",
]
