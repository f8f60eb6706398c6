"""Defenses by family: certified, training, repair, detectors, filters, guards, condense."""

from poisonkit.defenses.certified import DPA, CertifiedDefense

DEFENSES: dict[str, type[CertifiedDefense]] = {
    "dpa": DPA,
}

__all__ = ["DEFENSES", "DPA"]
