"""The local engine: models trained one after the other in this process, each finished one kept in the run."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

from torch import Tensor, nn

from poisonkit.defenses.certified import CertifiedDefense, Ensemble, Job
from poisonkit.engine.progress import Progress
from poisonkit.engine.run import Run
from poisonkit.train import Epoch, OnEpoch
from poisonkit.train.checkpoints import write_atomic


class Fit(Protocol):
    """Train the model of a job, resumably in ``directory``."""

    def __call__(self, job: Job, *, directory: Path | None = None, on_epoch: OnEpoch | None = None) -> nn.Module: ...


def train_model(run: Run, name: str, fit: Fit, job: Job, progress: Progress) -> tuple[nn.Module, float]:
    """The model of ``job``, trained in ``<run>/<name>/`` or loaded from there, and its training time in seconds.

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
    model = job.recipe.model.build(job.data.shape, job.data.num_classes, job.key).to(job.data.device)
    model.load_state_dict(state)
    return model.eval(), sum(line["seconds"] for line in _lines(log))


def train_ensemble(
    run: Run, name: str, defense: CertifiedDefense, jobs: list[Job], progress: Progress
) -> tuple[Ensemble, float]:
    """Every base model, in ``<run>/<name>/partition-<id>/``, as an ensemble; and their training time in seconds."""
    models, total = {}, 0.0
    for done, job in enumerate(jobs):
        progress.status(f"{name}: {done} of {len(jobs)} base models, {len(job.rows)} rows in the next")
        model, seconds = train_model(run, f"{name}/partition-{job.partition:04d}", defense.fit, job, progress)
        models[job.partition] = model
        total += seconds
    progress.line(f"{name}: {len(jobs)} base models trained")
    return defense.gather(models, jobs[0].data.num_classes), total


def _lines(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
