"""Defenses by family: certified, training, repair, detectors, filters, guards, condense."""

from poisonkit.defenses.certified import DPA, Aggregation

DEFENSES: dict[str, type[Aggregation]] = {
    "dpa": DPA,
}

__all__ = ["DEFENSES", "DPA"]
