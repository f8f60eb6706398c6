"""Defenses by family: certified, training, repair, detectors, filters, guards, condense."""

from poisonkit.defenses.certified import (
    DPA,
    Aggregation,
    Bagging,
    FiniteAggregation,
    HashBagging,
    RunOffElection,
    TemporalAggregation,
)

DEFENSES: dict[str, type[Aggregation]] = {
    "dpa": DPA,
    "finite_aggregation": FiniteAggregation,
    "run_off_election": RunOffElection,
    "hash_bagging": HashBagging,
    "bagging": Bagging,
    "temporal_aggregation": TemporalAggregation,
}

__all__ = [
    "DEFENSES",
    "DPA",
    "Bagging",
    "FiniteAggregation",
    "HashBagging",
    "RunOffElection",
    "TemporalAggregation",
]
