"""Units of work: networks trained together, one or a stack, each unit on its own and in any process.

<unit>/metrics.jsonl           a line for each network and epoch; its seconds are the network's share
<unit>/checkpoint.safetensors  while the unit is trained
<name>/base-0003/model         the network of job 3; a unit of one network is trained in this folder,
<name>/stack-0000/             a unit of several in this one
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

import torch
from torch import nn

from poisonkit.engine.progress import Progress
from poisonkit.engine.run import Run
from poisonkit.train import Epoch, Job, fit_stack, new_model
from poisonkit.train.checkpoints import write_atomic
from poisonkit.types import ImageDataset


@dataclass(frozen=True, eq=False)
class Unit:
    """Networks that are trained together.

    name    the folder of their training, below that of the run
    jobs    one for each network, all on one data set
    models  the artefact of each
    """

    name: str
    jobs: tuple[Job, ...]
    models: tuple[str, ...]

    @property
    def data(self) -> ImageDataset:
        """The data set of its jobs."""
        return self.jobs[0].data

    def on(self, data: ImageDataset) -> Unit:
        """The same unit, its rows those of ``data``."""
        return replace(self, jobs=tuple(replace(job, data=data) for job in self.jobs))


class Engine(Protocol):
    """Where units are trained. Whichever it is, the run holds the same bits afterwards."""

    def __call__(self, run: Run, units: Sequence[Unit], progress: Progress) -> None:
        """Train those of ``units`` that ``run`` does not hold yet."""


def single(name: str, job: Job) -> Unit:
    """One network, its artefact ``<name>/model``."""
    return Unit(name, (job,), (f"{name}/model",))


def stacks(name: str, jobs: Sequence[Job], size: int) -> list[Unit]:
    """``jobs``, ordered by id, cut into units of ``size`` networks and what is left."""
    units = []
    for start in range(0, len(jobs), size):
        some = tuple(jobs[start : start + size])
        models = tuple(f"{name}/base-{job.id:04d}" for job in some)
        folder = f"{name}/stack-{start // size:04d}" if len(some) > 1 else models[0]
        units.append(Unit(folder, some, tuple(f"{model}/model" for model in models)))
    return units


def done(run: Run, unit: Unit) -> bool:
    """Whether ``run`` holds every network of ``unit``."""
    return all(run.done(model) for model in unit.models)


def train(run: Run, unit: Unit, report: Callable[[str], None], *, wait: bool = True) -> str | None:
    """Train ``unit`` in ``run`` unless it is done; who else is at it, where ``wait`` is False and somebody is."""
    if not done(run, unit):
        with run.lock(unit.name, wait=wait) as holder:
            if holder:
                return holder
            if not done(run, unit):
                for model, network in zip(unit.models, _fit(run, unit, report), strict=True):
                    run.save(model, network.state_dict())
    run.path(f"{unit.name}/checkpoint.safetensors").unlink(missing_ok=True)
    return None


def _fit(run: Run, unit: Unit, report: Callable[[str], None]) -> list[nn.Module]:
    log = _log(run, unit)
    lines, clock = _lines(log), perf_counter()

    def on_epochs(epochs: list[Epoch]) -> None:
        nonlocal lines, clock
        now = perf_counter()
        share = {"seconds": round((now - clock) / len(epochs), 4)}
        # an epoch whose checkpoint was lost is done again, and replaces its lines
        lines = [line for line in lines if line["number"] < epochs[0].number]
        lines += [{"id": job.id, **asdict(epoch), **share} for job, epoch in zip(unit.jobs, epochs, strict=True)]
        write_atomic(log, "".join(json.dumps(line) + "\n" for line in lines).encode())
        clock = now
        report(f"{unit.name}: {epochs[0]}")

    return fit_stack(unit.jobs, directory=log.parent, on_epochs=on_epochs)


def load(run: Run, units: Iterable[Unit], device: torch.device) -> dict[int, nn.Module]:
    """The trained networks by the id of their job, in evaluation mode on ``device``."""
    models = {}
    for unit in units:
        for job, name in zip(unit.jobs, unit.models, strict=True):
            model = new_model(job.recipe, job.data, job.key, device)
            model.load_state_dict(run.load(name))
            models[job.id] = model.eval()
    return models


def seconds(run: Run, units: Iterable[Unit]) -> float:
    """How long the networks were trained, in all."""
    return float(sum(line["seconds"] for unit in units for line in _lines(_log(run, unit))))


def progress_of(run: Run, unit: Unit) -> str:
    """How far ``unit`` is, whoever trains it; nothing where it has not begun."""
    lines = _lines(_log(run, unit))
    return f"{unit.name} epoch {lines[-1]['number']}/{lines[-1]['total']}" if lines else ""


def _log(run: Run, unit: Unit) -> Path:
    return run.path(f"{unit.name}/metrics.jsonl")


def _lines(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
