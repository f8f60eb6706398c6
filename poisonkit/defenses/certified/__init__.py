"""Certified aggregation: many base models, each a function of few rows, and a vote that bounds any poison."""

from poisonkit.defenses.certified.aggregation import Aggregation
from poisonkit.defenses.certified.dpa import DPA
from poisonkit.defenses.certified.ensemble import Ensemble
from poisonkit.defenses.certified.partition import Split, partition

__all__ = ["DPA", "Aggregation", "Ensemble", "Split", "partition"]
