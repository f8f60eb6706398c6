"""Timing: candidates take turns, and a ratio compares times of the same turn."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Literal

from bench.goals import GOALS
from bench.rows import Row, command, commit, machine, today

Times = dict[str, list[float]]
Better = Literal["higher", "lower"]


def cpu_seconds(run: Callable[[], object]) -> float:
    """This thread's CPU time: on a shared machine it leaves out the time in which others run."""
    start = time.thread_time()
    run()
    return time.thread_time() - start


def wall_seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def interleave(
    candidates: dict[str, Callable[[], object]],
    rounds: int,
    seconds: Callable[[Callable[[], object]], float] = cpu_seconds,
) -> Times:
    """Seconds of each candidate in each round, after one round that does not count."""
    times: Times = {name: [] for name in candidates}
    for turn in range(rounds + 1):
        for name, run in candidates.items():
            taken = seconds(run)
            if turn:
                times[name].append(taken)
    return times


def peak_memory(run: Callable[[], object]) -> float:
    """Resident megabytes that ``run`` reaches beyond what the process holds before it (Linux)."""

    def status(field: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(field))

    ctypes.CDLL(None).malloc_trim(0)  # else it would take its memory from what was left behind
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = status("VmRSS")
    run()
    return (status("VmHWM") - before) / 1e3


def speedup(times: Times, candidate: str, over: str) -> float:
    """How many times faster ``candidate`` is: the median of the rounds' ratios."""
    return median(slow / fast for fast, slow in zip(times[candidate], times[over], strict=True))


def row(
    name: str,
    value: float,
    unit: str,
    samples: int,
    note: str = "",
    better: Better = "higher",
    gpu: str = "",
) -> Row:
    """A row taken here and now."""
    goal = GOALS.get(name)
    head, dirty = commit()
    return Row(
        name=name,
        value=float(f"{value:.4g}"),
        unit=unit,
        goal=goal.value if goal else None,
        better=goal.better if goal else better,
        commit=head,
        dirty=dirty,
        command=command(),
        machine=machine(gpu),
        date=today(),
        samples=samples,
        note=note,
    )
