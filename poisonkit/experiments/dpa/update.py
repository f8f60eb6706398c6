"""New training data for an old run: the base models whose rows are the same need no training.

Partitions are functions of content, so a row that came or went is in one partition (in d base models of Finite
Aggregation), and the others are what they were, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from poisonkit.engine import Run, Unit
from poisonkit.engine import units as work
from poisonkit.engine.run import differences
from poisonkit.errors import RunError, fail, require
from poisonkit.experiments.contents import CONTENTS, digests


@dataclass(frozen=True, eq=False)
class Changes:
    """What new data change in a run.

    models  ids of the base models whose rows, order, labels, recipe or key are others
    kept    units of which no base model changed: they can be copied
    stale   the others; a stack is trained whole, since its bits depend on how many networks it has
    """

    models: tuple[int, ...]
    kept: tuple[Unit, ...]
    stale: tuple[Unit, ...]


def changes(old: Run, name: str, units: Sequence[Unit]) -> Changes:
    """Compare what ``units`` are to be trained on with what the base models of ``old``, below ``name``, were."""
    before = old.load(f"{name}/split").get(CONTENTS)
    if before is None:
        fail(str(old.directory), "a run that recorded what it trained on", "an older one", "run it anew", RunError)
    jobs = [job for unit in units for job in unit.jobs]
    now = digests(jobs)
    require(len(before) == len(now), "base models", f"{len(before)}, as in {old.directory}", len(now), error=RunError)
    changed = {job.id for job, one, other in zip(jobs, now, before, strict=True) if not one.equal(other)}
    same = [not changed & {job.id for job in unit.jobs} and work.done(old, unit) for unit in units]
    return Changes(
        tuple(sorted(changed)),
        tuple(unit for unit, kept in zip(units, same, strict=True) if kept),
        tuple(unit for unit, kept in zip(units, same, strict=True) if not kept),
    )


def require_same(old: Run, environment: object) -> None:
    """Raise RunError where a network trained now would not have the bits that it has in ``old``."""
    for name, before, now in differences(old.manifest["environment"], environment):
        fail(f"{name} of an update of {old.directory}", f"{before}, as there", now, "train all of it anew", RunError)


def copy(old: Run, new: Run, units: Sequence[Unit]) -> None:
    """Bring the networks of ``units``, and the log of their training, from ``old`` to ``new``."""
    for unit in units:
        for model in unit.models:
            if not new.done(model):
                new.save(model, old.load(model))
        log = old.path(f"{unit.name}/metrics.jsonl")
        if log.exists():
            new.write(f"{unit.name}/metrics.jsonl", log.read_bytes())
