"""The Ray engine: units as tasks of Ray Core, on this machine or on a cluster that shares the run's file system.

A worker writes what it trains into the run directory, so nothing but the data travels, and a worker killed
at any moment costs an epoch: Ray starts its unit again elsewhere, which takes up the checkpoint.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from platform import node
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from poisonkit import mapped
from poisonkit.engine import units as work
from poisonkit.engine.environment import environment
from poisonkit.engine.progress import Progress
from poisonkit.engine.run import Run, differences, read_manifest
from poisonkit.engine.units import Unit
from poisonkit.errors import MissingError, PoisonkitError, RunError, fail, require
from poisonkit.types import ImageDataset

_LOOK_EVERY = 2.0  # seconds between looks at how far the units are


@dataclass(frozen=True)
class Ray:
    """Units as tasks of Ray; each takes as many CPUs as the run has threads.

    address  of a cluster, such as auto or 10.0.0.1:6379; local starts one here, for the run
    gpus     how much of a GPU a unit takes: with 0.25 four share one; 0 trains on CPUs
    retries  how often a unit is started again after its worker died
    """

    address: str = "local"
    gpus: float = 0.0
    retries: int = 3

    def __post_init__(self) -> None:
        require(self.gpus >= 0, "gpus", "0 or more", self.gpus)
        require(self.retries >= 0, "retries", "0 or more", self.retries)
        there = find_spec("ray") is not None
        require(there, "ray", "installed for --engine ray", "no module", "pip install 'poisonkit[ray]'", MissingError)

    def __call__(self, run: Run, units: Sequence[Unit], progress: Progress) -> None:
        left = [unit for unit in units if not work.done(run, unit)]
        if not left:
            return
        ray: Any = import_module("ray")
        ours = not ray.is_initialized()
        if ours:
            progress.status("starting Ray")
            try:
                ray.init(address=self.address, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
            except (ConnectionError, RuntimeError) as error:
                fail("address of Ray", "that of a cluster that runs", self.address, str(error), RunError)
        tasks: dict[Any, Unit] = {}
        try:
            cpus = torch.get_num_threads()
            _require_room(ray.nodes(), cpus, self.gpus)
            remote = ray.remote(num_cpus=cpus, num_gpus=self.gpus, max_retries=self.retries)(_work)
            stored = {id(data): ray.put(_Packed.of(data)) for data in {id(u.data): u.data for u in left}.values()}
            for unit in left:
                named, data = remote.options(name=unit.name), stored[id(unit.data)]
                tasks[named.remote(str(run.directory.resolve()), _bare(unit), data, self.gpus > 0)] = unit
            while tasks:
                for task in ray.wait(list(tasks), timeout=_LOOK_EVERY)[0]:
                    unit = tasks.pop(task)
                    try:
                        ray.get(task)
                    except ray.exceptions.RayTaskError as error:
                        raise (error.cause if isinstance(error.cause, PoisonkitError) else error) from None
                    except ray.exceptions.RayError as error:
                        lost = f"{type(error).__name__} after {self.retries} retries"
                        fail(unit.name, "trained", lost, "look for want of memory; then start again", RunError)
                doing = [work.progress_of(run, unit) for unit in islice(tasks.values(), 8)]
                trained = f"{len(units) - len(tasks)} of {len(units)} units trained"
                progress.status("; ".join(filter(None, [trained, *doing])))
        finally:
            for task in tasks:
                ray.cancel(task, force=True)
            if ours:
                ray.shutdown()


def _require_room(nodes: list[dict[str, Any]], cpus: int, gpus: float) -> None:
    """Without it Ray would wait for a node that never comes."""
    room = [(each["Resources"].get("CPU", 0), each["Resources"].get("GPU", 0)) for each in nodes if each["Alive"]]
    fits = any(cpu >= cpus and gpu >= gpus for cpu, gpu in room)
    rule = f"one with a node of {cpus} CPUs and {gpus:g} GPUs, as a unit needs"
    require(fits, "Ray cluster", rule, f"CPUs and GPUs {room}", "lower --threads or --ray.gpus", RunError)


def _bare(unit: Unit) -> Unit:
    """The unit without its data, and with rows that are no part of a larger storage, which would travel along."""
    jobs = tuple(replace(job, rows=job.rows.clone()) for job in unit.jobs)
    return replace(unit, jobs=jobs).on(unit.data.take(torch.arange(0)))


@dataclass(frozen=True, eq=False)
class _Packed:
    """A data set as it travels: arrays that all workers of a node share, or where the images are mapped from."""

    images: NDArray[np.uint8] | mapped.Source
    labels: NDArray[np.int64]
    classes: tuple[str, ...]

    @classmethod
    def of(cls, data: ImageDataset) -> _Packed:
        return cls(mapped.Source.of(data.images) or data.images.cpu().numpy(), data.labels.cpu().numpy(), data.classes)

    def unpacked(self) -> ImageDataset:
        with warnings.catch_warnings():
            # Ray shares arrays read only, which torch cannot express; training only reads
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            images = self.images.map() if isinstance(self.images, mapped.Source) else torch.from_numpy(self.images)
            return ImageDataset(images, torch.from_numpy(self.labels), self.classes)


def _work(directory: str, unit: Unit, packed: _Packed, cuda: bool) -> None:
    """Train a unit: what runs in a worker."""
    where = f"worker on {node()}"
    shared = (Path(directory) / "manifest.json").is_file()
    rule = "on a file system that every node shares"
    require(shared, "run directory", rule, f"{directory}, which the {where} does not see", error=RunError)
    run = Run(directory, read_manifest(Path(directory)))
    if cuda:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_num_threads(run.manifest["environment"]["threads"])
    device = torch.device("cuda" if cuda else "cpu")
    for name, before, now in differences(run.manifest["environment"], environment(device)):
        remedy = "keep the node out of the cluster, or make it alike"
        fail(f"environment.{name} of the {where}", f"{before}, as the run was started", now, remedy, RunError)
    unit = unit.on(packed.unpacked())
    work.train(run, _resident(unit, device) if cuda else unit, lambda text: None)


def _resident(unit: Unit, device: torch.device) -> Unit:
    """The unit on ``device``, with its own rows only."""
    rows = torch.unique(torch.cat([job.rows for job in unit.jobs]))
    data = unit.data.take(rows).to(device)
    jobs = tuple(replace(job, data=data, rows=torch.searchsorted(rows, job.rows)) for job in unit.jobs)
    return replace(unit, jobs=jobs)
