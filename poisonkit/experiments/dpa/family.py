"""Four certificates from two trainings: DPA and Finite Aggregation, each by plurality and by run-off.

A run-off asks the same base models a second question, so it costs no training.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from poisonkit.defenses import FiniteAggregation, RunOffElection
from poisonkit.defenses.certified import Split
from poisonkit.experiments.lab import Lab
from poisonkit.experiments.measures import Row, measure
from poisonkit.types import Poison


@dataclass(frozen=True, eq=False)
class Family:
    """The rows DPA, DPA + ROE, FA, FA + ROE, and how the rows of the data were divided for DPA and FA."""

    rows: tuple[Row, ...]
    splits: tuple[Split, Split]


def family(lab: Lab, defense: RunOffElection, poison: Poison | None) -> Family:
    """Train k base models for DPA and k·d for Finite Aggregation, with the k and d of ``defense``, and certify both."""
    dirty = (poison.apply(lab.train) if poison else lab.train).to(lab.test.device)
    rows, splits = [], []
    for name, label, spread in (("dpa", "DPA", 1), ("finite_aggregation", "FA", defense.spread)):
        election = replace(defense, spread=spread)
        split = lab.split(name, election, dirty)
        jobs = election.jobs(dirty, lab.recipe, key=lab.key.child("defense"), split=split)
        trained = lab.networks(name, jobs)
        run_off = election.gather(trained.models, dirty.num_classes, split)
        ballots = lab.ask(name, run_off, poison)  # hold what a plurality needs, too
        plurality = FiniteAggregation(**vars(election)).gather(trained.models, dirty.num_classes, split)
        for title, ensemble in ((label, plurality), (f"{label} + ROE", run_off)):
            rows.append(measure(title, ensemble, ballots, lab.test, poison, trained.seconds, certify=True))
        splits.append(split)
    return Family(tuple(rows), (splits[0], splits[1]))
