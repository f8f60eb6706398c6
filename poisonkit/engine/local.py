"""The local engine: models trained one after the other in this process, each finished one kept in the run."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from poisonkit.config import from_dict
from poisonkit.defenses import DEFENSES
from poisonkit.defenses.certified import Aggregation, Ensemble, Split
from poisonkit.engine.progress import Progress
from poisonkit.engine.run import Run
from poisonkit.errors import RunError, require
from poisonkit.random import key
from poisonkit.train import Epoch, Job, Recipe, new_model
from poisonkit.train.checkpoints import load_tensors, write_atomic
from poisonkit.types import ImageDataset


def train_model(
    run: Run, name: str, fit: Callable[..., nn.Module], job: Job, progress: Progress
) -> tuple[nn.Module, float]:
    """The model of ``job``, trained in ``<run>/<name>/`` or loaded from there, and its training time in seconds.

    ``fit`` is :func:`poisonkit.train.fit_job`, or the ``fit`` of a certified defense.
    The folder keeps ``model.safetensors`` and ``metrics.jsonl``, a line an epoch.
    """
    folder = run.path(f"{name}/model.safetensors").parent
    checkpoint, log = folder / "checkpoint.safetensors", folder / "metrics.jsonl"

    def compute() -> dict[str, Tensor]:
        lines = _lines(log) if checkpoint.exists() else []
        clock = perf_counter()

        def report(epoch: Epoch) -> None:
            nonlocal clock
            now = perf_counter()
            lines.append({**asdict(epoch), "seconds": round(now - clock, 4)})
            write_atomic(log, "".join(json.dumps(line) + "\n" for line in lines).encode())
            clock = now
            progress.status(f"{name}: {epoch}")

        return fit(job, directory=folder, on_epoch=report).state_dict()

    state = run.tensors(f"{name}/model", compute)
    checkpoint.unlink(missing_ok=True)
    model = new_model(job.recipe, job.data, job.key)
    model.load_state_dict(state)
    return model.eval(), sum(line["seconds"] for line in _lines(log))


def train_ensemble(
    run: Run, name: str, defense: Aggregation, jobs: list[Job], split: Split, progress: Progress
) -> tuple[Ensemble, float]:
    """Every base model, in ``<run>/<name>/base-<id>/``, as an ensemble; and their training time in seconds."""
    models, total = {}, 0.0
    for done, job in enumerate(jobs):
        progress.status(f"{name}: {done} of {len(jobs)} base models, {len(job.rows)} rows in the next")
        model, seconds = train_model(run, f"{name}/base-{job.id:04d}", defense.fit, job, progress)
        models[job.id] = model
        total += seconds
    progress.line(f"{name}: {len(jobs)} base models trained")
    return defense.gather(models, jobs[0].data.num_classes, split), total


def load_ensemble(directory: str | Path) -> Ensemble:
    """The ensemble that a finished run of a certified defense left in ``directory``, on the CPU.

    Raises RunError where a base model is missing, DataError where one is damaged.
    """
    directory = Path(directory)
    manifest = json.loads((directory / "manifest.json").read_text())
    plan, about = manifest["plan"], manifest["data"]
    kinds = {kind.__name__: (name, kind) for name, kind in DEFENSES.items()}
    name, kind = kinds[plan["defense"]["class"]]
    defense = from_dict(kind, plan["defense"])
    recipe = defense.base(from_dict(Recipe, plan["recipe"]))
    empty = ImageDataset(
        torch.zeros(0, *about["shape"], dtype=torch.uint8), torch.zeros(0, dtype=torch.int64), tuple(about["classes"])
    )
    models = {}
    for path in sorted((directory / name).glob("base-*/model.safetensors")):
        model = new_model(recipe, empty, key(0))
        model.load_state_dict(load_tensors(path))
        models[int(path.parent.name.removeprefix("base-"))] = model.eval()
    require(len(models) > 0, "run", f"one with models below {name}/", directory, "run it to its end", RunError)
    split = Split.of(load_tensors(directory / name / "split.safetensors"))
    return defense.gather(models, empty.num_classes, split)


def _lines(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
