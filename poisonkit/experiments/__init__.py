"""Named experiments: poison a training set, train with and without a defense, measure, report."""

from poisonkit.experiments.comparison import Comparison, arrange, compare, prepare, stacking
from poisonkit.experiments.families import WITH_CLEAN, check, defend, family, set_aside
from poisonkit.experiments.measures import Row
from poisonkit.experiments.presets import EXPERIMENTS, RECIPES, Experiment

__all__ = [
    "EXPERIMENTS",
    "RECIPES",
    "WITH_CLEAN",
    "Comparison",
    "Experiment",
    "Row",
    "arrange",
    "check",
    "compare",
    "defend",
    "family",
    "prepare",
    "set_aside",
    "stacking",
]
