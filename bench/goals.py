"""Every goal, in one table, wherever it can be measured; and how the rows stand against it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bench.rows import Row


@dataclass(frozen=True)
class Goal:
    value: float
    needs: str  # what a machine must have for the row to exist
    better: Literal["higher", "lower"] = "higher"

    def met(self, value: float) -> bool:
        return value >= self.value if self.better == "higher" else value <= self.value


_AMX = "a CPU with AMX int8"
_VNNI = "a CPU with AVX-512 VNNI"
_AVX2 = "a CPU with AVX2"
_ANY = "any CPU"
_GPU = "a CUDA device"

GOALS: dict[str, Goal] = {
    # One core's bandwidth reading the same array, measured between the kernel's runs.
    "weighted_sum_hash/amx/12288/of_read": Goal(0.90, _AMX),
    "weighted_sum_hash/amx/3072/of_read": Goal(0.80, _AMX),
    "weighted_sum_hash/avx512_vnni/12288/of_read": Goal(0.75, _VNNI),
    "weighted_sum_hash/avx512_vnni/3072/of_read": Goal(0.60, _VNNI),
    "weighted_sum_hash/avx2/12288/of_read": Goal(0.50, _AVX2),
    "weighted_sum_hash/avx2/3072/of_read": Goal(0.40, _AVX2),
    "weighted_sum_hash/scalar/12288/of_read": Goal(0.07, _ANY),
    # What one would use instead, on the same rows and one core.
    "weighted_sum_hash/amx/12288/over_xxh3_128": Goal(1.2, _AMX),
    "weighted_sum_hash/amx/12288/over_blake3": Goal(5, _AMX),
    "weighted_sum_hash/amx/12288/over_sha256": Goal(10, _AMX),
    "weighted_sum_hash/amx/12288/over_torch_int_mm": Goal(4, _AMX),
    "weighted_sum_hash/amx/12288/over_torch_int64": Goal(100, _AMX),
    "weighted_sum_hash/amx/12288/over_python": Goal(1000, _AMX),
    # Run-time dispatch costs nothing against compiling everything for the machine at hand.
    "weighted_sum_hash/best/12288/over_march_native": Goal(0.95, _ANY),
    # The device's own read bandwidth, and the op written in torch.
    "weighted_sum_hash/cuda/12288/of_read": Goal(0.85, _GPU),
    "weighted_sum_hash/cuda/12288/over_eager": Goal(10, _GPU),
}


@dataclass(frozen=True)
class Standing:
    """How one measured row, or none, stands against one goal."""

    name: str
    goal: Goal
    row: Row | None
    where: str

    @property
    def status(self) -> str:
        if self.row is None:
            return "not measured"
        return "met" if self.goal.met(self.row.value) else "unmet"


def standings(rows: Iterable[tuple[Path, Row]], goals: dict[str, Goal] = GOALS) -> Iterator[Standing]:
    """Each goal once per machine that measured it, by its latest row, or once as not measured."""
    measured: dict[str, dict[str, tuple[Path, Row]]] = {}
    for path, row in sorted(rows, key=lambda found: found[1].date):
        measured.setdefault(row.name, {})[row.machine.gpu or path.stem] = (path, row)
    for name, goal in goals.items():
        if name not in measured:
            yield Standing(name, goal, None, f"needs {goal.needs}")
        for path, row in measured.get(name, {}).values():
            yield Standing(name, goal, row, path.stem)
