"""Named experiments: poison a training set, train with and without a defense, measure, report."""

from poisonkit.experiments.comparison import Comparison, arrange, compare, prepare, stacking
from poisonkit.experiments.measures import Row
from poisonkit.experiments.presets import EXPERIMENTS, RECIPES, Experiment

__all__ = ["EXPERIMENTS", "RECIPES", "Comparison", "Experiment", "Row", "arrange", "compare", "prepare", "stacking"]
