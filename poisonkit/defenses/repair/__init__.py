"""Defenses that mend a trained network with a few clean images."""

from poisonkit.defenses.families import Repair
from poisonkit.defenses.repair.fine_pruning import FinePruning
from poisonkit.defenses.repair.fine_tuning import FineTuning
from poisonkit.defenses.repair.i_bau import IBAU
from poisonkit.defenses.repair.mm_bm import MMBM
from poisonkit.defenses.repair.mmac import MMAC
from poisonkit.defenses.repair.mmom import MMOM
from poisonkit.defenses.repair.nad import NAD
from poisonkit.defenses.repair.neural_cleanse import NeuralCleanseMitigation
from poisonkit.defenses.repair.rnp import RNP

#: Every defense of this family, by the name that ``poisonkit run --defense`` takes
REPAIR: dict[str, type[Repair]] = {
    "fine_pruning": FinePruning,
    "fine_tuning": FineTuning,
    "i_bau": IBAU,
    "mm_bm": MMBM,
    "mmac": MMAC,
    "mmom": MMOM,
    "nad": NAD,
    "neural_cleanse_mitigation": NeuralCleanseMitigation,
    "rnp": RNP,
}

__all__ = [
    "IBAU",
    "MMAC",
    "MMBM",
    "MMOM",
    "NAD",
    "REPAIR",
    "RNP",
    "FinePruning",
    "FineTuning",
    "NeuralCleanseMitigation",
]
