"""Defenses that say whether a trained network has a backdoor, and for which class."""

from poisonkit.defenses.detectors.mm_bd import MMBD
from poisonkit.defenses.detectors.neural_cleanse import NeuralCleanse
from poisonkit.defenses.families import Detector

#: Every defense of this family, by the name that ``poisonkit run --defense`` takes
DETECTORS: dict[str, type[Detector]] = {
    "mm_bd": MMBD,
    "neural_cleanse": NeuralCleanse,
}

__all__ = ["DETECTORS", "MMBD", "NeuralCleanse"]
