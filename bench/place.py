"""Where a GPU bench runs: on the device at full size, or the same lines anywhere at a size for tests."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bench import measure
from bench.measure import Times, wall_seconds
from bench.rows import Row

T = TypeVar("T")


@dataclass(frozen=True)
class Place:
    """A device, the folder for what long work keeps there, and whether everything is ``small``: a size for tests."""

    device: torch.device
    folder: Path
    small: bool = False

    @property
    def name(self) -> str:
        """The part of a row's name that says where it was taken."""
        return self.device.type

    def of(self, full: T, small: T) -> T:
        """A size."""
        return small if self.small else full

    @property
    def rounds(self) -> int:
        return self.of(15, 1)

    def seconds(self, run: Callable[[], object]) -> float:
        """Seconds of ``run`` by the device's events, with a cold L2; off CUDA by the wall clock.

        Reading another buffer first evicts what the last run left in the cache, and keeps the device busy while the
        host prepares the launch, which so does not count.
        """
        if self.device.type != "cuda":
            return wall_seconds(run)
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        _cold(self.device, self.small).sum()
        start.record()
        run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    def interleave(self, candidates: dict[str, Callable[[], object]], rounds: int | None = None) -> Times:
        return measure.interleave(candidates, rounds or self.rounds, self.seconds)

    def wait(self) -> None:
        """Until the device has done all that it was told."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """By torch.compile; where everything is small only traced, since code for a CPU takes a compiler, and long."""
        return torch.compile(function, dynamic=False, backend=self.of("inductor", "eager"))

    def row(
        self,
        name: str,
        value: float,
        unit: str,
        note: str = "",
        better: measure.Better = "higher",
        samples: int | None = None,
    ) -> Row:
        gpu = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else ""
        return measure.row(name, value, unit, samples or self.rounds, note, better, gpu=gpu)


@cache
def _cold(device: torch.device, small: bool) -> Tensor:
    return torch.zeros(1 << (10 if small else 27), dtype=torch.int64, device=device)  # 1 GiB


class OpsTime(TorchDispatchMode):
    """Seconds in the block that this package's own ops take, forward and backward.

    It looks at every call of torch, which slows the others: what they take is to be timed without it.
    """

    def __init__(self, place: Place) -> None:
        super().__init__()
        self.place, self.seconds = place, 0.0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.namespace != "poisonkit":
            return func(*args, **(kwargs or {}))
        found: list[Any] = []

        def call() -> None:
            found.append(func(*args, **(kwargs or {})))
            self.place.wait()

        self.place.wait()
        self.seconds += wall_seconds(call)
        return found[0]


def share_of_ops(place: Place, run: Callable[[], object]) -> tuple[float, float]:
    """Seconds of ``run``, and the share of them that this package's ops take, a launch and a wait each included."""

    def whole() -> None:
        run()
        place.wait()

    whole()  # what is slow once does not count
    seconds, watch = wall_seconds(whole), OpsTime(place)
    with watch:
        run()
    return seconds, watch.seconds / seconds


def sections(place: Place, each: Iterable[Callable[[Place], Iterator[Row]]]) -> Iterator[Row]:
    """The rows of every section; one that fails is told of and leaves the others to run, then the whole fails."""
    failed = []
    for section in each:
        try:
            yield from section(place)
        except Exception:  # noqa: BLE001, whatever a device that was never tried may raise
            traceback.print_exc()
            failed.append(section.__name__)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")
