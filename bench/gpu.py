"""What needs a GPU: ops against the device's bandwidth and against torch, and a defense from end to end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from bench import measure
from bench.measure import interleave, speedup
from bench.rows import Row
from poisonkit import ops

ROUNDS = 15


def bench_ops() -> Iterator[Row]:
    """The bandwidth, the hash at full size, and every op against its reference in torch."""
    yield from copying()
    yield from hash_against_reading()
    for name in ops.OPS:
        yield from against_reference(name)


def copying() -> Iterator[Row]:
    source = torch.randint(256, (1 << 32,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    times = interleave({"copy": lambda: target.copy_(source)}, ROUNDS, seconds)
    moved = 2 * source.numel()
    yield row("copy/cuda/throughput", moved / median(times["copy"]) / 1e9, "GB/s", "bytes read and bytes written")


def hash_against_reading(D: int = 12288) -> Iterator[Row]:
    """All of ImageNet at 64x64, or a third of it where memory is short, and passes that only read it."""
    free, _ = torch.cuda.mem_get_info()
    rows = 1_281_167 if free > 1.25 * 1_281_167 * D else 400_000
    x, weights = hash_arguments(rows, D)
    some = torch.cat([torch.arange(500), torch.arange(rows - 500, rows)]).cuda()
    with ops.isa("reference"):
        expected = ops.weighted_sum_hash(x[some].cpu(), weights.cpu())
    assert torch.equal(ops.weighted_sum_hash(x, weights)[some].cpu(), expected), "wrong hashes"

    words = x.view(torch.int64)
    # Which reduction comes nearest to the bandwidth differs between devices: the fastest is the limit.
    reads = {"sum": words.sum, "max": words.amax, "float sum": x.view(torch.float32).sum}
    times = interleave({"hash": lambda: ops.weighted_sum_hash(x, weights), **reads}, ROUNDS, seconds)
    limit = min(reads, key=lambda name: median(times[name]))
    name, note = f"weighted_sum_hash/cuda/{D}", f"{rows} rows; the read is torch's {limit}"
    yield row(f"{name}/of_read", speedup(times, "hash", over=limit), "ratio", note)
    yield row(f"{name}/throughput", x.numel() / median(times["hash"]) / 1e9, "GB/s", note)
    yield row(f"{name}/read_throughput", x.numel() / median(times[limit]) / 1e9, "GB/s", note)


def hash_arguments(rows: int, D: int = 12288) -> tuple[Tensor, Tensor]:
    x = torch.randint(256, (rows, D), dtype=torch.uint8, device="cuda")
    return x, ops.hash_weights(D).cuda()


# Op -> a name for the size, and arguments whose reference still fits. An op without an entry takes its largest sample.
SIZES: dict[str, tuple[str, Callable[[], tuple[Any, ...]]]] = {
    "weighted_sum_hash": ("12288", lambda: hash_arguments(65_536)),
}


def against_reference(name: str) -> Iterator[Row]:
    """An op against its own reference, eager and compiled, on the same arguments."""
    op = ops.OPS[name]
    size, make = SIZES.get(name, ("largest_sample", lambda: largest(op.samples())))
    arguments = make()
    run = getattr(ops, name)
    reference: dict[str, Callable[..., Tensor]] = {"eager": op.reference}
    note = ""
    try:
        compiled = torch.compile(op.reference, dynamic=False)
        compiled(*arguments)
        reference["compiled"] = compiled
    except RuntimeError as error:  # torch's compiler raises its own children of this one
        note = f"torch.compile of the reference: {type(error).__name__}"
    for which, function in reference.items():
        torch.testing.assert_close(
            run(*arguments), function(*arguments), msg=lambda text, which=which: f"{which}: {text}"
        )
    candidates = {"op": lambda: run(*arguments)}
    candidates |= {which: lambda function=function: function(*arguments) for which, function in reference.items()}
    times = interleave(candidates, ROUNDS, seconds)
    for which in reference:
        yield row(f"{name}/cuda/{size}/over_{which}", speedup(times, "op", over=which), "ratio", note)


def largest(samples: Iterator[tuple[Any, ...]]) -> tuple[Any, ...]:
    def move(argument: Any) -> Any:
        return argument.cuda() if isinstance(argument, Tensor) else argument

    def elements(arguments: tuple[Any, ...]) -> int:
        return sum(argument.numel() for argument in arguments if isinstance(argument, Tensor))

    return tuple(move(argument) for argument in max(samples, key=elements))


def bench_dpa() -> Iterator[Row]:
    """DPA with sixteen base models from the command line to the report: CIFAR-10 where it is, else the digits."""
    root = Path(os.environ.get("POISONKIT_DATA", ".data"))
    real = (root / "cifar10").is_dir() and all(map(find_spec, ("pyarrow", "PIL")))  # what its reader needs
    data = ["--data", "cifar10", "--root", str(root)] if real else ["--data", "digits"]
    with tempfile.TemporaryDirectory() as folder:
        run = [sys.executable, "-m", "poisonkit", "run", *data, "--device", "cuda", "--out", f"{folder}/run"]
        run += [
            "--attack",
            "centre_patch",
            "--attack.size",
            "8" if real else "2",
            "--rate",
            "0.002" if real else "0.03",
        ]
        run += ["--defense", "dpa", "--defense.partitions", "16"]
        run += ["--recipe.epochs", "10", "--recipe.precision", "bfloat16"]
        start = time.perf_counter()
        subprocess.run(run, check=True)
        wall = time.perf_counter() - start
        results = json.loads(Path(folder, "run", "results.json").read_text())
    note = " ".join(["poisonkit", *run[3 : run.index("--out")], *run[run.index("--out") + 2 :]])
    note = note.replace(str(root), "DATA")
    name = f"dpa/cuda/{data[1]}"
    yield row(f"{name}/wall", wall, "s", note, "lower", 1)
    for result in results:
        which = f"{name}/{result['name'].split('(')[0].strip().replace(' ', '_')}"
        yield row(f"{which}/train", result["seconds"], "s", better="lower", samples=1)
        yield row(f"{which}/clean_accuracy", result["clean_accuracy"], "share", samples=1)
        yield row(f"{which}/attack_success_rate", result["attack_success_rate"], "share", better="lower", samples=1)


PARTS: dict[str, Callable[[], Iterator[Row]]] = {"ops": bench_ops, "dpa": bench_dpa}


def seconds(run: Callable[[], object]) -> float:
    """Seconds on the device by events, with a cold L2.

    Reading another buffer first evicts what the last run left in the cache, and keeps the device busy while the host
    prepares the launch, which so does not count.
    """
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    _cold().sum()
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


@cache
def _cold() -> Tensor:
    return torch.zeros(1 << 27, dtype=torch.int64, device="cuda")  # 1 GiB


def row(
    name: str, value: float, unit: str, note: str = "", better: measure.Better = "higher", samples: int = ROUNDS
) -> Row:
    return measure.row(name, value, unit, samples, note, better, gpu=torch.cuda.get_device_name())
