"""The journal of long work in a run: its checkpoints below a name, and a line in metrics.jsonl for all it tells."""

from __future__ import annotations

import json
from dataclasses import asdict
from time import perf_counter
from typing import Any

from poisonkit.engine.progress import Progress
from poisonkit.engine.run import Run
from poisonkit.train import Epoch, Journal
from poisonkit.train.checkpoints import write_atomic


def journal(run: Run, name: str, progress: Progress) -> Journal:
    """The journal of the work ``name``, which takes up what a killed one left there."""
    log, clock = run.path(f"{name}/metrics.jsonl"), perf_counter()
    if log.exists():
        lines, _, torn = log.read_bytes().rpartition(b"\n")
        if torn:  # where the disk was full, or the power went
            write_atomic(log, lines + b"\n" if lines else b"")

    def tell(what: dict[str, Any], text: str) -> None:
        nonlocal clock
        now = perf_counter()
        with log.open("a") as file:
            file.write(json.dumps({**what, "seconds": round(now - clock, 4)}) + "\n")
        clock = now
        progress.status(f"{name}: {text}")

    def on_epoch(epoch: Epoch) -> None:
        tell(asdict(epoch), str(epoch))

    return Journal(log.parent, on_epoch, lambda text: tell({"said": text}, text))


def seconds_of(run: Run, name: str) -> float:
    """How long the work ``name`` has told to have taken, what a kill undid included."""
    log = run.path(f"{name}/metrics.jsonl")
    return float(sum(json.loads(line)["seconds"] for line in log.read_text().splitlines())) if log.exists() else 0.0
