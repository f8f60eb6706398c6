"""Defenses by family; what each family takes and gives is in :mod:`poisonkit.defenses.families`."""

from typing import Any

from poisonkit.defenses.certified import (
    CERTIFIED,
    DPA,
    Bagging,
    FiniteAggregation,
    HashBagging,
    RunOffElection,
    TemporalAggregation,
)
from poisonkit.defenses.condense import CONDENSE, DM, RdmDc
from poisonkit.defenses.detectors import DETECTORS
from poisonkit.defenses.filters import FILTERS
from poisonkit.defenses.guards import GUARDS
from poisonkit.defenses.repair import REPAIR
from poisonkit.defenses.training import EPIC, TRAINING

#: The dictionary of every family of defenses, by its name
FAMILIES: dict[str, dict[str, type[Any]]] = {
    "certified": {**CERTIFIED},
    "training": {**TRAINING},
    "filters": {**FILTERS},
    "repair": {**REPAIR},
    "detectors": {**DETECTORS},
    "guards": {**GUARDS},
    "condense": {**CONDENSE},
}
#: Every defense of all families, by the name that ``poisonkit run --defense`` takes
DEFENSES: dict[str, type[Any]] = {name: kind for family in FAMILIES.values() for name, kind in family.items()}

__all__ = [
    "CERTIFIED",
    "DEFENSES",
    "DM",
    "DPA",
    "EPIC",
    "FAMILIES",
    "Bagging",
    "FiniteAggregation",
    "HashBagging",
    "RdmDc",
    "RunOffElection",
    "TemporalAggregation",
]
