"""python -m bench: measure on this machine, or say how what was measured stands against the goals."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from importlib import import_module
from pathlib import Path

import torch

from bench import rows
from bench.goals import GOALS, standings
from bench.rows import Row

DOCS = rows.ROOT / "docs" / "benchmarks.md"
BEGIN, END = "<!-- python -m bench writes this table -->\n", "<!-- end of the table -->\n"


def measured(name: str) -> Iterator[Row]:
    """The rows of ``bench/<name>.py``, which imports what it measures against, and so is imported when it runs."""
    yield from import_module(f"bench.{name}").bench()


# What is measured on a CPU, by the name of its module
CPU: dict[str, Callable[[], Iterator[Row]]] = {
    name: partial(measured, name)
    for name in (
        "calibrated_mean",
        "certificates",
        "clipped_relu",
        "condense",
        "epic",
        "facility_location",
        "ieu",
        "imagenet64",
        "mmac",
        "peers",
        "stacked",
        "triggers",
        "weighted_sum_hash",
    )
}

# The parts that need a GPU; bench/gpu.py has them.
GPU = ("ops", "dpa", "epic", "ieu", "rdm-dc", "mmac")

# These fill a disk, need real images or compile others' code, and run only when named.
LARGE = {"epic", "imagenet64", "peers"}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"CPU benches; by default all but {', '.join(LARGE)}")
    parser.add_argument("--list", action="store_true", help="what there is to measure")
    parser.add_argument("--check", action="store_true", help="every goal: met, unmet, or not measured")
    parser.add_argument("--gpu", choices=GPU, help="measure a part on the GPU, as bench/gpu.sh does")
    arguments = parser.parse_args(argv)
    if arguments.list:
        return listing()
    if arguments.check:
        return check(rows.read())
    if unknown := set(arguments.names) - set(CPU):
        parser.error(f"no CPU bench of {', '.join(sorted(unknown))}; there is {', '.join(CPU)}")
    rows.commit()  # before this run changes the tree
    if arguments.gpu and not torch.cuda.is_available():
        print("no CUDA device; nothing was measured")
    elif arguments.gpu:
        # For deterministic training, and before CUDA starts
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        from bench import gpu
        from bench.place import Place

        keep(gpu.PARTS[arguments.gpu](Place(torch.device("cuda"), rows.ROOT / "runs" / "bench")))
    else:
        torch.set_num_threads(1)
        for name in arguments.names or [name for name in CPU if name not in LARGE]:
            keep(CPU[name]())
    return 0


def keep(measured: Iterable[Row]) -> None:
    """Print each row as it comes and put it into its machine's file, then all into the table of the docs."""
    for row in measured:
        path = file_of(show(row))
        rows.write(path, [row])  # at once: a run that is cut off has measured what it has measured
        if row.machine.gpu and "OUT" in os.environ:
            shutil.copy(path, os.environ["OUT"])
    DOCS.write_text(with_table(DOCS.read_text(), rows.read()))


def file_of(row: Row) -> Path:
    """Where the rows of its machine are kept."""
    machine = row.machine
    if machine.gpu:
        return rows.RESULTS / "gpu" / f"{row.date}-{rows.slug(machine.gpu)}.json"
    return rows.RESULTS / "cpu" / f"{rows.slug(f'{machine.cpu} {machine.cores} cores {machine.isa[-1]}')}.json"


def show(row: Row) -> Row:
    print(f"{row.name:55} {row.value:10g} {row.unit:6} {row.note}", flush=True)
    return row


def listing() -> int:
    from poisonkit.ops import OPS

    for name in sorted({*OPS, *CPU}):
        cpu = f"python -m bench {name}" if name in CPU else "no CPU bench"
        print(f"{name:24} {cpu:36} {'GPU: bench/gpu.sh ops' if name in OPS else ''}".rstrip())
    return 0


def check(measured: Iterable[tuple[Path, Row]]) -> int:
    """Print every goal; 1 if a measured one is unmet."""
    found = list(standings(measured))
    for standing in found:
        sign = "≥" if standing.goal.better == "higher" else "≤"
        value = f"{standing.row.value:g} " if standing.row else ""
        dirty = ", of a changed tree" if standing.row and standing.row.dirty else ""
        print(
            f"{standing.status:13} {standing.name:50} {value}{sign} {standing.goal.value:g} ({standing.where}{dirty})"
        )
    unmet = sum(standing.status == "unmet" for standing in found)
    missing = sum(standing.status == "not measured" for standing in found)
    print(f"{len(GOALS)} goals: {unmet} measured and unmet, {missing} not measured yet (those do not fail this check)")
    return 1 if unmet else 0


def with_table(page: str, measured: Iterable[tuple[Path, Row]]) -> str:
    """``page`` with its table made anew from the result files."""
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    lines = ["| what | value | goal | machine | date, commit |", "|---|---|---|---|---|"]
    for path, row in measured:
        goal = GOALS[row.name].value if row.name in GOALS else ""
        taken = f"{row.date}, {row.commit[:10]}{' + changes' if row.dirty else ''}"
        lines.append(f"| {row.name} | {row.value:g} {row.unit} | {goal} | {path.stem} | {taken} |")
    return before + BEGIN + "\n".join(lines) + "\n" + END + after


if __name__ == "__main__":
    sys.exit(main())
