"""Certified aggregation: many base models, each a function of few rows, and a vote that bounds any poison."""

from poisonkit.defenses.certified.dpa import DPA
from poisonkit.defenses.certified.ensemble import CertifiedDefense, Ensemble
from poisonkit.defenses.certified.partition import Partitioning, partition

__all__ = ["DPA", "CertifiedDefense", "Ensemble", "Partitioning", "partition"]
