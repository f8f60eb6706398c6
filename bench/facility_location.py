"""Facility location on one core, distances included: against apricot's and submodlib's greedy, with theirs left out.

apricot compiles for over a second in every call; of that, too, nothing is counted. Where rows are wide the distances
are what takes time, so there every peer pays for its own.
"""

from __future__ import annotations

import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from statistics import median

import apricot
import numpy as np
import torch
from apricot.optimizers import LazyGreedy
from sklearn.metrics.pairwise import euclidean_distances
from submodlib import FacilityLocationFunction
from threadpoolctl import threadpool_limits
from torch import Tensor

from bench.gradients import gradients
from bench.measure import cpu_seconds, interleave, peak_memory, row, speedup
from bench.rows import ROOT, Row
from poisonkit import ops

ROUNDS = 5
NARROW = ((5000, 500), (5000, 1500))
LARGE = (20_000, 2000)
WIDE = (1300, 130)


def bench() -> Iterator[Row]:
    """Every row of this bench, one thread."""
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numba's and submodlib's
        for n, k in NARROW:
            yield from against_greedies(n, k, {"apricot": apricot_greedy, "submodlib": submodlib_greedy}, ROUNDS)
        yield from against_greedies(*LARGE, {"apricot": apricot_greedy}, 1)  # submodlib: minutes
        yield from against_whole_peers(*WIDE)
    yield from memory(*LARGE)


def ours(x: Tensor, k: int) -> ops.Medoids:
    return ops.facility_location(x, [0, len(x)], [k])


def similarity(x: Tensor) -> np.ndarray:
    distances = euclidean_distances(x.numpy())
    return distances.max() - distances


class TimedGreedy(LazyGreedy):
    """apricot's greedy with the CPU time of its picks alone."""

    seconds = 0.0

    def select(self, *arguments: object, **options: object) -> None:
        self.seconds = cpu_seconds(lambda: super(TimedGreedy, self).select(*arguments, **options))


def apricot_greedy(s: np.ndarray, k: int) -> tuple[float, list[int]]:
    greedy = TimedGreedy()
    selector = apricot.FacilityLocationSelection(k, metric="precomputed", optimizer=greedy)
    picks = selector.fit(s).ranking.tolist()
    return greedy.seconds, picks


def submodlib_greedy(s: np.ndarray, k: int) -> tuple[float, list[int]]:
    function = FacilityLocationFunction(n=len(s), mode="dense", sijs=s, separate_rep=False)
    start = time.thread_time()
    found = function.maximize(budget=k, optimizer="LazyGreedy", show_progress=False)
    return time.thread_time() - start, [pick for pick, _ in found]


def against_greedies(
    n: int, k: int, peers: dict[str, Callable[[np.ndarray, int], tuple[float, list[int]]]], rounds: int
) -> Iterator[Row]:
    """Ours with its distances against each peer's greedy without, on float64 similarities."""
    x = gradients(n, 10)
    distances = euclidean_distances(x.double().numpy())
    s = distances.max() - distances
    best = s[:, ours(x, k).rows.numpy()].max(1).sum()
    for run in peers.values():
        objective = s[:, run(s, k)[1]].max(1).sum()
        assert abs(best / objective - 1) < 1e-6, "the greedies differ"
    candidates: dict[str, Callable[[], float]] = {"ours": lambda: cpu_seconds(lambda: ours(x, k))}
    candidates |= {name: lambda run=run: run(s, k)[0] for name, run in peers.items()}
    times = interleave(candidates, rounds, lambda run: run())
    name, isa = f"facility_location/cpu/{n}x10/{k}", ops.isas()[-1]
    yield row(f"{name}/time", median(times["ours"]) * 1e3, "ms", rounds, isa, "lower")
    for peer in peers:
        note = f"{isa}; ours with distances, {median(times[peer]):.3g} s of {peer}'s picks alone"
        yield row(f"{name}/over_{peer}", speedup(times, "ours", over=peer), "ratio", rounds, note)


def against_whole_peers(n: int, k: int) -> Iterator[Row]:
    """1000 features: from the rows to the picks, by anyone (but for apricot's compilation)."""
    x = gradients(n, 1000, modes=30)

    def peer(greedy: Callable[[np.ndarray, int], tuple[float, list[int]]]) -> Callable[[], float]:
        def run() -> float:
            start = time.thread_time()
            s = similarity(x)
            taken = time.thread_time() - start
            return taken + greedy(s, k)[0]

        return run

    candidates = {
        "ours": lambda: cpu_seconds(lambda: ours(x, k)),
        "apricot": peer(apricot_greedy),
        "submodlib": peer(submodlib_greedy),
    }
    times = interleave(candidates, ROUNDS, lambda run: run())
    best = min(("apricot", "submodlib"), key=lambda name: median(times[name]))
    name, note = (
        f"facility_location/cpu/{n}x1000/{k}",
        f"{ops.isas()[-1]}; the best is {best} on scikit-learn's distances",
    )
    yield row(f"{name}/time", median(times["ours"]) * 1e3, "ms", ROUNDS, note, "lower")
    yield row(f"{name}/over_best_peer", speedup(times, "ours", over=best), "ratio", ROUNDS, note)


def memory(n: int, k: int) -> Iterator[Row]:
    """Peak resident memory beyond what a process with the rows holds, in one of its own."""
    program = f"from bench.facility_location import peak; print(peak({n}, {k}))"
    value = float(subprocess.check_output([sys.executable, "-W", "ignore", "-c", program], cwd=ROOT))
    yield row(f"facility_location/cpu/{n}x10/{k}/memory", value, "MB", 1, ops.isas()[-1], "lower")


def peak(n: int, k: int) -> float:
    torch.set_num_threads(1)
    x = gradients(n, 10)
    ours(x[:100], 10)  # what is loaded once does not count
    return peak_memory(lambda: ours(x, k))
