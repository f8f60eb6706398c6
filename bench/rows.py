"""A measurement as a value, where it was taken, and the files that keep them."""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import torch

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results"


@dataclass(frozen=True)
class Machine:
    cpu: str
    cores: int
    isa: tuple[str, ...]  # the instruction sets this process can use, best last
    gpu: str  # "" for a CPU measurement
    python: str
    torch: str
    load: float  # one-minute load average when the row was made: on a busy machine even ratios suffer


@dataclass(frozen=True)
class Row:
    """One measurement. This is the schema of the result files."""

    name: str  # op/variant/size/quantity, as in goals.GOALS
    value: float
    unit: str
    goal: float | None  # the goal at the time; goals.GOALS has today's
    better: Literal["higher", "lower"]
    commit: str
    dirty: bool  # the working tree differed from the commit
    command: str
    machine: Machine
    date: str
    samples: int
    note: str

    @staticmethod
    def from_json(fields: dict[str, object]) -> Row:
        machine = dict(fields["machine"])
        machine["isa"] = tuple(machine["isa"])
        return Row(**{**fields, "machine": Machine(**machine)})


def machine(gpu: str = "") -> Machine:
    return Machine(
        cpu=_cpu(),
        cores=len(os.sched_getaffinity(0)),
        isa=_isas(),
        gpu=gpu,
        python=platform.python_version(),
        torch=torch.__version__,
        load=round(os.getloadavg()[0], 2),
    )


@cache
def commit() -> tuple[str, bool]:
    """The commit and whether the tree differs from it, asked once: before the results themselves are written."""
    try:
        head = _git("rev-parse", "HEAD")
        return head, bool(_git("status", "--porcelain", "--", ".", ":!bench/results", ":!docs/benchmarks.md"))
    except (OSError, subprocess.CalledProcessError):
        # A copy of the tree without its history: whoever tells the commit vouches for it.
        told = os.environ.get("POISONKIT_COMMIT", "unknown")
        return told, told == "unknown"


def command() -> str:
    return shlex.join(["python", "-m", "bench", *sys.argv[1:]])


def today() -> str:
    return datetime.datetime.now(datetime.timezone.utc).date().isoformat()


def slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def read(folder: Path = RESULTS) -> Iterator[tuple[Path, Row]]:
    """Every row of every result file, with its file."""
    for path in sorted(folder.rglob("*.json")):
        for fields in json.loads(path.read_text()):
            yield path, Row.from_json(fields)


def write(path: Path, rows: Iterable[Row]) -> None:
    """Add ``rows`` to a result file, each in place of the one of its name."""
    kept = {row.name: row for _, row in read(path.parent) if _ == path}
    kept |= {row.name: row for row in rows}
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = path.with_suffix(".partial")
    whole.write_text(json.dumps([asdict(kept[name]) for name in sorted(kept)], indent=1) + "\n")
    whole.replace(path)


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def _cpu() -> str:
    try:
        found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def _isas() -> tuple[str, ...]:
    from poisonkit import ops

    return tuple(ops.isas())
