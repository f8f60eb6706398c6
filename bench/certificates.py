"""Certificates at the size of ImageNet: 50,000 inputs, 1000 classes, k = 250, in seconds, memory and against NumPy.

The votes are drawn: a model is right with probability 0.3, and else errs by a power law over an order of the classes
that each input has of its own. Drawing, and packing the bits of a run-off, are not timed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.measure import cpu_seconds, interleave, row, speedup, wall_seconds
from bench.rows import ROOT, Row
from poisonkit import certificates

INPUTS, CLASSES, K, SPREAD = 50_000, 1000, 250, 16
CHUNK = 500  # inputs of a run-off at a time: 31 MB of bits
PEER = 200  # inputs of the NumPy peer
ROUNDS = 3


def bench() -> Iterator[Row]:
    """Every row of this bench; seconds are of the wall clock on as many threads as the name says."""
    for threads in (1, 2):
        if threads <= len(os.sched_getaffinity(0)):
            torch.set_num_threads(threads)
            yield from seconds(f"{threads}_threads")
    torch.set_num_threads(1)
    yield from memory()
    yield from against_numpy()


def draw(models: int, inputs: int, seed: int = 0) -> Tensor:
    """uint16 [models, inputs], drawn in parts of a few megabytes."""
    generator = np.random.default_rng(seed)
    truth = generator.integers(CLASSES, size=inputs)
    step, scale = generator.choice(np.flatnonzero(np.gcd(np.arange(CLASSES), CLASSES) == 1), inputs), CLASSES - 1
    votes = np.empty((models, inputs), np.uint16)
    for model in votes:
        # ranks with density 1 / rank: its distribution function is the logarithm
        rank = np.floor(np.exp(generator.random(inputs, dtype=np.float32) * np.log(scale))).astype(np.int64)
        model[:] = (truth + step * np.where(generator.random(inputs, dtype=np.float32) < 0.3, 0, rank)) % CLASSES
    return torch.from_numpy(votes)


def bits(first: Tensor, seed: int = 0) -> Tensor:
    """What ``run_off_above`` packs: a finalist is above its own voters' other classes, and above most others'."""
    generator = np.random.default_rng(seed)
    models, inputs = first.shape
    shape = (models, inputs, 2, CLASSES // 8)
    above = generator.integers(256, size=shape, dtype=np.uint8) | generator.integers(256, size=shape, dtype=np.uint8)
    finalists = certificates.run_off_finalists(first, CLASSES)
    ids = first.to(torch.int64).numpy()
    i, x = np.ogrid[:models, :inputs]
    for f, finalist in enumerate(finalists.T.numpy()):
        above[:, :, f][ids == finalist] = 255
        above[i, x, f, ids // 8] &= ~(1 << (ids % 8)).astype(np.uint8)
        above[:, np.arange(inputs), f, finalist // 8] &= ~(1 << (finalist % 8)).astype(np.uint8)
    return torch.from_numpy(above)


def shifts() -> list[int]:
    return np.random.default_rng(1).choice(K * SPREAD, SPREAD, replace=False).tolist()


def certify(name: str) -> Callable[[], object]:
    """One certificate at full size, or of one chunk of a run-off; its input is held by what is returned."""
    if name == "roe":
        first = draw(K, CHUNK)
        above = bits(first)
        # both steps of it; between them the caller packs the bits
        return lambda: (
            certificates.run_off_finalists(first, CLASSES),
            certificates.run_off_votes(first, above, CLASSES),
        )
    votes, feeds = (draw(K, INPUTS), [0]) if name == "dpa" else (draw(K * SPREAD, INPUTS), shifts())
    return lambda: certificates.finite_aggregation(votes, CLASSES, feeds)


def seconds(threads: str) -> Iterator[Row]:
    """Wall-clock seconds of each certificate of all the inputs."""
    notes = {"dpa": f"{K} models", "fa": f"{K * SPREAD} models, d = {SPREAD}"}
    notes["roe"] = f"{K} models; a chunk of {CHUNK} inputs, times {INPUTS // CHUNK}"
    for name, note in notes.items():
        repeats = INPUTS // CHUNK if name == "roe" else 1
        times = interleave({name: certify(name)}, ROUNDS, wall_seconds)
        yield row(f"certificates/{name}/{threads}/seconds", median(times[name]) * repeats, "s", ROUNDS, note, "lower")


def memory() -> Iterator[Row]:
    """Peak resident memory of each certificate beyond what a process with its input holds, in one of its own."""
    for name in ("dpa", "fa", "roe"):
        line = [sys.executable, "-m", "bench.certificates", name]
        run = subprocess.run(line, cwd=ROOT, check=True, capture_output=True, text=True)
        value = json.loads(run.stdout)
        yield row(f"certificates/{name}/memory_beyond_input", value, "GB", 1, better="lower")


def beyond_input(name: str) -> float:
    """Gigabytes; Linux only."""
    run = certify(name)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = status("VmRSS")
    run()
    return (status("VmHWM") - before) / 1e6


def status(key: str) -> int:
    """A line of the kernel's account of this process, in kB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))


def against_numpy() -> Iterator[Row]:
    """The kernel on one thread against NumPy, per input; equal first."""
    votes, feeds = draw(K * SPREAD, 4 * PEER), shifts()
    peers: dict[str, tuple[Tensor, list[int], int]] = {
        "dpa": (votes[:K], [0], 4 * PEER),
        "fa": (votes, feeds, PEER // 10),
    }
    for name, (ballots, shifts_, few) in peers.items():
        theirs = ballots[:, :few].numpy()
        prediction, radius = certificates.finite_aggregation(ballots[:, :few], CLASSES, shifts_)
        expected = numpy_radius(theirs, shifts_)
        assert np.array_equal(prediction, expected[0]), f"{name}: other predictions"
        assert np.array_equal(radius, expected[1]), f"{name}: other radii"
        times = interleave(
            {
                "kernel": lambda: certificates.finite_aggregation(ballots, CLASSES, shifts_),  # noqa: B023
                "numpy": lambda: numpy_radius(theirs, shifts_),  # noqa: B023
            },
            ROUNDS,
            cpu_seconds,
        )
        ratio = speedup(times, "kernel", over="numpy") * ballots.shape[1] / few
        note = f"per input; {ballots.shape[1]} inputs against {few}"
        yield row(f"certificates/{name}/over_numpy", ratio, "ratio", ROUNDS, note)


def numpy_radius(votes: np.ndarray[Any, Any], shifts: list[int]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The certificate vectorised over all buckets and rivals of an input, voted classes and one other alone."""
    n, inputs = votes.shape
    prediction, radius = np.empty(inputs, np.int64), np.empty(inputs, np.int64)
    fed = (np.arange(n)[:, None] + np.array(shifts)) % n  # [buckets, d]
    for x, vote in enumerate(votes.T):
        count = np.bincount(vote, minlength=CLASSES)
        y = prediction[x] = count.argmax()
        rivals = np.unique(np.append(vote, np.flatnonzero(count == 0)[:1]))
        rivals = rivals[rivals != y]
        gap = count[y] - count[rivals] - (rivals < y)
        model = 1 + (vote == y).astype(np.int16) - (vote == rivals[:, None])
        power = sum(model[:, column] for column in fed.T).astype(np.int32)  # [rivals, buckets]
        power.sort(axis=1)
        gained = power[:, ::-1].cumsum(axis=1)
        radius[x] = (gained <= gap[:, None]).sum(axis=1).min()
    return prediction, radius


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(beyond_input(sys.argv[1])))
