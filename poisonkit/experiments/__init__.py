"""Named experiments: poison a training set, train with and without a defense, measure, report."""

from poisonkit.experiments.comparison import Comparison, Row, compare, prepare
from poisonkit.experiments.presets import EXPERIMENTS, RECIPES, Experiment

__all__ = ["EXPERIMENTS", "RECIPES", "Comparison", "Experiment", "Row", "compare", "prepare"]
