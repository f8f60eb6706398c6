"""The local engine: units trained one after the other in this process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from poisonkit.engine import units as work
from poisonkit.engine.progress import Progress
from poisonkit.engine.run import Run
from poisonkit.engine.units import Unit


@dataclass(frozen=True)
class Local:
    """One unit after the other, here; those that other processes are at come last."""

    def __call__(self, run: Run, units: Sequence[Unit], progress: Progress) -> None:
        holders = [work.train(run, unit, progress.status, wait=False) for unit in units]
        for unit, holder in zip(units, holders, strict=True):
            if holder:
                progress.waits(unit.name)(holder)
                work.train(run, unit, progress.status)
