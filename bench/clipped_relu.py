"""The clipped ReLU on one core, forward and backward: against plain ReLU, and torch's formula as it is and compiled.

A tensor of 32 MB and more is mapped anew for every result by glibc's malloc, and the page faults then take longer than
any arithmetic. So each measurement is made twice, in processes of their own: with an allocator that keeps its memory,
for which the goals are, and as malloc is. One's own program is rid of the faults with the same variables,

    MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=17179869184 MALLOC_TOP_PAD_=1073741824 python ...

or with jemalloc or tcmalloc in LD_PRELOAD.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from statistics import median

import torch
from torch import Tensor

from bench.measure import Times, interleave, row, speedup
from bench.rows import ROOT, Row
from poisonkit import ops

KEEPING = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 34), "MALLOC_TOP_PAD_": str(1 << 30)}
ROUNDS = 9
SIZES = ((128, 64, 32, 32), (256, 256, 16, 16))
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
CASES = [(size, layout, torch.float32) for size in SIZES for layout in LAYOUTS]
CASES += [(SIZES[0], layout, torch.bfloat16) for layout in LAYOUTS]


def bench() -> Iterator[Row]:
    """Every row of this bench, one thread."""
    variables = " ".join(f"{name}={value}" for name, value in KEEPING.items())
    yield from rows(measure(KEEPING), "", variables)
    yield from rows(measure({}), "page_faults/", "malloc as it is")


def measure(environment: dict[str, str]) -> dict[str, Times]:
    """The times of every case, taken in a process with these variables."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    command = [sys.executable, "-m", "bench.clipped_relu"]
    return json.loads(subprocess.check_output(command, cwd=ROOT, env=plain | environment))


def rows(measured: dict[str, Times], allocator: str, note: str) -> Iterator[Row]:
    note = f"{ops.isas()[-1]}; {note}"
    for case, times in measured.items():
        name = f"clipped_relu/cpu/{case}/{allocator}"
        yield row(f"{name}time", median(times["ours"]) * 1e3, "ms", ROUNDS, note, "lower")
        yield row(f"{name}of_relu", 1 / speedup(times, "ours", over="relu"), "ratio", ROUNDS, note, "lower")
        for peer in ("eager", "compiled"):
            yield row(f"{name}over_{peer}", speedup(times, "ours", over=peer), "ratio", ROUNDS, note)
        # A copy reads and writes every element once; here five passes of one element are needed.
        yield row(f"{name}of_copy", 2.5 * speedup(times, "ours", over="copy"), "ratio", ROUNDS, note)
        for frozen in ("frozen_x", "frozen_bound"):
            ratio = 1 / speedup(times, frozen, over="ours")
            yield row(f"{name}{frozen}_of_both", ratio, "ratio", ROUNDS, note, "lower")


def main() -> None:
    """The times of every case in this process, as JSON."""
    torch.set_num_threads(1)
    measured = {}
    for size, layout, dtype in CASES:
        name = f"{'x'.join(map(str, size))}/{layout}"
        name += "" if dtype == torch.float32 else f"/{str(dtype).removeprefix('torch.')}"
        measured[name] = interleave(candidates(size, LAYOUTS[layout], dtype), ROUNDS)
    json.dump(measured, sys.stdout)


def candidates(
    size: tuple[int, ...], layout: torch.memory_format, dtype: torch.dtype
) -> dict[str, Callable[[], object]]:
    generator = torch.Generator().manual_seed(0)
    x, grad = (torch.randn(size, generator=generator).to(dtype, memory_format=layout) for _ in range(2))
    bound = torch.rand(size[1], generator=generator) + 0.5
    copy = torch.empty_like(x)
    compiled = torch.compile(formula, dynamic=False)

    def gradients(function: Callable[..., Tensor], *inputs: Tensor) -> Callable[[], object]:
        wanted = [tensor for tensor in inputs if tensor.requires_grad]
        return lambda: torch.autograd.grad(function(*inputs), wanted, grad)

    learnt_x, learnt_bound = x.clone().requires_grad_(), bound.clone().requires_grad_()
    runs = {
        "ours": gradients(ops.clipped_relu, learnt_x, learnt_bound),
        "relu": gradients(torch.relu, learnt_x),
        "eager": gradients(formula, learnt_x, learnt_bound),
        "compiled": gradients(compiled, learnt_x, learnt_bound),
        "frozen_x": gradients(ops.clipped_relu, x, learnt_bound),
        "frozen_bound": gradients(ops.clipped_relu, learnt_x, bound),
    }
    if dtype == torch.float32:  # bfloat16 has ties, which torch splits
        for peer in ("eager", "compiled"):
            torch.testing.assert_close(runs["ours"](), runs[peer](), rtol=1e-4, atol=1e-2)
    return {**runs, "copy": lambda: copy.copy_(x)}


def formula(x: Tensor, bound: Tensor) -> Tensor:
    return torch.minimum(torch.relu(x), bound.to(x.dtype).view(-1, 1, 1))


if __name__ == "__main__":
    main()
