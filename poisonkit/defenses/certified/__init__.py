"""Certified aggregation: many base models, each a function of few rows, and a vote that bounds any poison."""

from poisonkit.defenses.certified.aggregation import Aggregation
from poisonkit.defenses.certified.bagging import Bagging
from poisonkit.defenses.certified.dpa import DPA
from poisonkit.defenses.certified.ensemble import Ballots, Ensemble
from poisonkit.defenses.certified.finite_aggregation import FiniteAggregation
from poisonkit.defenses.certified.hash_bagging import HashBagging
from poisonkit.defenses.certified.partition import Split, partition
from poisonkit.defenses.certified.run_off_election import RunOffElection
from poisonkit.defenses.certified.temporal_aggregation import TemporalAggregation

#: Every defense of this family, by the name that ``poisonkit run --defense`` takes
CERTIFIED: dict[str, type[Aggregation]] = {
    "dpa": DPA,
    "finite_aggregation": FiniteAggregation,
    "run_off_election": RunOffElection,
    "hash_bagging": HashBagging,
    "bagging": Bagging,
    "temporal_aggregation": TemporalAggregation,
}

__all__ = [
    "CERTIFIED",
    "DPA",
    "Aggregation",
    "Bagging",
    "Ballots",
    "Ensemble",
    "FiniteAggregation",
    "HashBagging",
    "RunOffElection",
    "Split",
    "TemporalAggregation",
    "partition",
]
