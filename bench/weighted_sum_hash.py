"""The weighted-sum hash on one core: against reading the same array, and against what one would use instead."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from types import ModuleType

import blake3
import torch
import xxhash
from torch import Tensor

from bench.measure import interleave, row, speedup, wall_seconds
from bench.rows import ROOT, Row
from bench.torch_hash import P, torch_int64, torch_int_mm
from poisonkit import _core, ops

ROWS = 100_000  # 1.2 GB at D = 12288: far more than any cache
ROUNDS = 9


def bench() -> Iterator[Row]:
    """Every row of this bench, one thread unless the row says otherwise."""
    pixels = torch.randint(256, (ROWS, 12288), dtype=torch.uint8)
    yield from against_reading(pixels)
    yield from against_reading(pixels.view(-1, 3072)[:ROWS])
    yield from against_others(pixels)
    yield from scaling(pixels)
    yield from against_march_native(pixels)


def against_reading(x: Tensor) -> Iterator[Row]:
    """Every instruction set of this machine and a pass that only reads, taking turns."""
    D = x.shape[1]
    weights = ops.hash_weights(D)
    for isa in native_isas():
        with ops.isa(isa):
            assert torch.equal(ops.weighted_sum_hash(x[:16], weights), python(x[:16], weights)), f"{isa} is wrong"
            times = interleave(
                {
                    "read": lambda: _core.read_bytes(x.data_ptr(), x.numel()),
                    "hash": lambda: ops.weighted_sum_hash(x, weights),
                },
                ROUNDS,
            )
        name = f"weighted_sum_hash/{isa}/{D}"
        yield row(f"{name}/of_read", speedup(times, "hash", over="read"), "ratio", ROUNDS)
        yield row(f"{name}/throughput", x.numel() / median(times["hash"]) / 1e9, "GB/s", ROUNDS)
        yield row(f"{name}/read_throughput", x.numel() / median(times["read"]) / 1e9, "GB/s", ROUNDS)


def native_isas() -> tuple[str, ...]:
    return tuple(isa for isa in ops.isas() if isa != "reference")


def against_others(x: Tensor) -> Iterator[Row]:
    """What one would use instead, each on as many of the rows as it does in a fraction of a second."""
    D = x.shape[1]
    weights = ops.hash_weights(D)
    isa, ours = ops.isas()[-1], x[:10_000]
    peers: dict[str, tuple[int, Callable[[Tensor, Tensor], Tensor | list[object]]]] = {
        "xxh3_128": (10_000, lambda x, _: [xxhash.xxh3_128_intdigest(image) for image in x.numpy()]),
        "blake3": (5_000, lambda x, _: [blake3.blake3(image).digest() for image in x.numpy()]),
        "sha256": (5_000, lambda x, _: [hashlib.sha256(image).digest() for image in x.numpy()]),
        "torch_int_mm": (2_000, torch_int_mm),
        "torch_float64": (1_000, ops.OPS["weighted_sum_hash"].reference),
        "torch_int64": (500, torch_int64),
        "python": (50, python),
    }
    for peer, (count, run) in peers.items():
        theirs, expected = x[:count], ops.weighted_sum_hash(x[:count], weights)
        result = run(theirs, weights)
        if isinstance(result, Tensor):
            assert torch.equal(result, expected), f"{peer} computes something else"
        times = interleave(
            {"hash": lambda: ops.weighted_sum_hash(ours, weights), peer: lambda: run(theirs, weights)},  # noqa: B023
            ROUNDS,
        )
        ratio = speedup(times, "hash", over=peer) * len(ours) / count
        note = f"per row; {len(ours)} rows against {count}"
        if not isinstance(result, Tensor):
            note += "; a digest of each row, a different function for the same purpose"
        yield row(f"weighted_sum_hash/{isa}/{D}/over_{peer}", ratio, "ratio", ROUNDS, note)


def scaling(x: Tensor) -> Iterator[Row]:
    """Two threads over one, by the wall clock: it needs two idle cores."""
    if len(os.sched_getaffinity(0)) < 2:
        return
    weights = ops.hash_weights(x.shape[1])

    def threads(count: int) -> Callable[[], object]:
        def run() -> None:
            torch.set_num_threads(count)
            ops.weighted_sum_hash(x, weights)

        return run

    times = interleave({"one": threads(1), "two": threads(2)}, ROUNDS, wall_seconds)
    torch.set_num_threads(1)
    name = f"weighted_sum_hash/{ops.isas()[-1]}/{x.shape[1]}/two_threads_over_one"
    yield row(name, speedup(times, "two", over="one"), "ratio", ROUNDS, "wall clock")


def against_march_native(x: Tensor) -> Iterator[Row]:
    """The kernel as it is built, which chooses its instructions as it runs, against the same with -march=native."""
    weights = ops.hash_weights(x.shape[1])
    isa, (vectors, D) = ops.isas()[-1], weights.shape
    hashes = weights.new_empty(len(x), vectors)

    def hashing(core: ModuleType) -> Callable[[], object]:
        pointers = (x.data_ptr(), len(x), D, x.stride(0), weights.data_ptr(), vectors, hashes.data_ptr())
        return lambda: core.weighted_sum_hash(*pointers, isa, 1)

    with tempfile.TemporaryDirectory() as folder:
        times = interleave({"ours": hashing(_core), "native": hashing(march_native(Path(folder)))}, ROUNDS)
    note = f"{isa}; CXXFLAGS=-march=native python setup.py build_ext --inplace"
    yield row(
        f"weighted_sum_hash/best/{D}/over_march_native", speedup(times, "ours", over="native"), "ratio", ROUNDS, note
    )


def march_native(folder: Path) -> ModuleType:
    """The native module built from a copy of this tree for this processor alone."""
    for name in ("csrc", "poisonkit"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    flags = {"CXXFLAGS": "-march=native", "POISONKIT_CUDA_ARCHS": "90"}
    build = [sys.executable, "setup.py", "build_ext", "--inplace"]
    subprocess.run(build, cwd=folder, env=os.environ | flags, check=True, capture_output=True)
    (library,) = (folder / "poisonkit").glob("_core*.so")
    spec = importlib.util.spec_from_file_location("march_native._core", library)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def python(x: Tensor, weights: Tensor) -> Tensor:
    """The hash in Python's integers."""
    vectors = weights.tolist()
    sums = [[sum(map(int.__mul__, w, image)) % P for w in vectors] for image in x.tolist()]
    return torch.tensor(sums, dtype=torch.int64)
