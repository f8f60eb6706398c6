"""ImageNet64 at full size: published batches to partitions, against plainly reading and writing the same bytes.

The batches are random bytes in both official formats, with planted duplicates. They and what is made of them lie in a
temporary folder (below TMPDIR) which is gone at the end: 35 GB of free disk are needed. Half an hour on a slow disk.
"""

from __future__ import annotations

import os
import pickle
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from statistics import mean

import numpy as np
import torch

from bench.measure import interleave, row, speedup, wall_seconds
from bench.rows import Row
from poisonkit.attacks import CentrePatch
from poisonkit.data.imagenet64 import convert, read_imagenet64
from poisonkit.defenses.certified import partition
from poisonkit.random import key
from poisonkit.types import Budget

TRAIN, VAL = 1_281_167, 50_000
BATCHES, DIM = 10, 12288
PARTITIONS = 16
BUDGET = Budget(rate=0.003)
ROUNDS = 2
BLOCK = 1 << 22
GB = 1e9


def bench(train: int = TRAIN, val: int = VAL) -> Iterator[Row]:
    """Every row of this bench, on as many threads as there are cores."""
    enough = (2 * (train + val) + train // BATCHES) * DIM + GB
    with tempfile.TemporaryDirectory(prefix="poisonkit-imagenet64-") as name:
        folder = Path(name)
        free = shutil.disk_usage(folder).free
        if free < enough:
            sys.exit(f"TMPDIR must have {enough / GB:.0f} GB of free disk, got {free / GB:.0f} in {folder.parent}")
        threads = torch.get_num_threads()
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        try:
            batches = list(publish(folder / "batches", train, val))
            yield from conversion(batches, folder)
            shutil.rmtree(folder / "batches")
            yield from partitioning(folder / "imagenet64")
        finally:
            torch.set_num_threads(threads)


def publish(folder: Path, train: int, val: int) -> Iterator[Path]:
    """Random batches of the official lengths: .npz files, then pickles. Image 0 lies in each of them three times.

    The first time with label 1, and all these are one row; then with labels that it has nowhere else.
    """
    folder.mkdir()
    random = np.random.default_rng(0)
    each = train // BATCHES
    lengths = [each] * (BATCHES - 1) + [train - each * (BATCHES - 1), val]
    first = random.integers(0, 256, DIM, dtype=np.uint8)
    for i, length in enumerate(lengths):
        pixels, labels = random.integers(0, 256, (length, DIM), dtype=np.uint8), random.integers(1, 1001, length)
        pixels[:3], labels[:3] = first, [1, 10 + i, 100 + i]
        path = folder / (f"train_data_batch_{i + 1}" if i < BATCHES else "val_data")
        if i % 2:
            with path.open("wb") as file:
                pickle.dump({"data": pixels, "labels": labels.tolist()}, file, protocol=3)
        else:
            path = path.with_name(f"{path.name}.npz")
            np.savez(path, data=pixels, labels=labels)
        with path.open("rb") as file:
            os.fsync(file.fileno())
        yield path


def conversion(batches: list[Path], folder: Path) -> Iterator[Row]:
    """The conversion against copying the batches, one by one, before it and after it; caches cold each time."""
    bytes_ = sum(path.stat().st_size for path in batches)

    def copy() -> None:
        for path in batches:
            copy_file(path, folder / "copy")
            (folder / "copy").unlink()

    copies = [cold_seconds(copy, batches)]
    with Peak() as peak:
        seconds = cold_seconds(lambda: convert(folder / "batches", folder / "imagenet64"), batches)
    copies.append(cold_seconds(copy, batches))
    note = f"{bytes_ / GB:.1f} GB, cold, wall clock; copies before and after took {copies[0]:.1f} and {copies[1]:.1f} s"
    yield row("imagenet64/convert/over_copy", seconds / mean(copies), "ratio", 1, note, better="lower")
    yield row("imagenet64/convert/seconds", seconds, "s", 1, better="lower")
    yield from peak.rows("convert")


def partitioning(folder: Path) -> Iterator[Row]:
    """Hashing, partitioning and sorting against reading the file; and the whole way of a poisoned set."""
    path = folder / "train_images.npy"
    data, _ = read_imagenet64(folder)

    def split() -> None:
        parts = partition(data, PARTITIONS, key=key(0))
        # row 0 lies in every other batch too; the same image with another label is another row, and no collision
        assert (parts.duplicates, parts.collisions) == (BATCHES - 1, 0), parts
        assert sum(parts.sizes) == len(data)

    candidates = {"read": lambda: read_file(path), "partition": split}
    with Peak() as peak:
        for state, seconds in {"cold": lambda run: cold_seconds(run, [path]), "warm": wall_seconds}.items():
            times = interleave(candidates, ROUNDS, seconds)
            ratios = [over / read for over, read in zip(times["partition"], times["read"], strict=True)]
            note = f"{len(data)} rows, wall clock; {min(ratios):.2f} to {max(ratios):.2f}"
            ratio = 1 / speedup(times, "partition", over="read")
            yield row(f"imagenet64/partition/{state}/over_read", ratio, "ratio", ROUNDS, note, better="lower")
            yield row(f"imagenet64/partition/{state}/seconds", mean(times["partition"]), "s", ROUNDS, better="lower")
    yield from peak.rows("partition")
    # rows picked here and there are read through the mapping: what the kernel maps along with them, up to 2 MB a row,
    # counts as resident, and is the page cache's, to be taken back at any time
    with Peak() as peak:
        poison = CentrePatch()(data, BUDGET, key=key(0))
        seconds = wall_seconds(lambda: poison.apply(data))
        dirty = poison.apply(data)
        digested = wall_seconds(dirty.digest)
        partition(dirty, PARTITIONS, key=key(0))
    yield row("imagenet64/poison/seconds", seconds, "s", 1, f"a copy with {len(poison.rows)} rows changed", "lower")
    yield row("imagenet64/digest/seconds", digested, "s", 1, "SHA-256 of the poisoned set", "lower")
    yield from peak.rows("poisoned")


def copy_file(source: Path, destination: Path) -> None:
    """What a program that only reads and writes does: one buffer, and the bytes on the disk when it is done."""
    with source.open("rb", buffering=0) as file, destination.open("wb", buffering=0) as copy:
        for block in blocks(file):
            copy.write(block)
        os.fsync(copy.fileno())


def read_file(path: Path) -> None:
    with path.open("rb", buffering=0) as file:
        for _ in blocks(file):
            pass


def blocks(file) -> Iterator[memoryview]:
    buffer = memoryview(bytearray(BLOCK))
    while count := file.readinto(buffer):
        yield buffer[:count]


def cold_seconds(run, files: list[Path]) -> float:
    """The time of ``run`` with none of ``files`` in the page cache."""
    for path in files:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return wall_seconds(run)


class Peak:
    """The most memory of this process while it is open: resident, and of that anonymous, which no cache explains."""

    def __enter__(self) -> Peak:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        self.anonymous, self.done = 0, threading.Event()
        self.watcher = threading.Thread(target=self.watch)
        self.watcher.start()
        return self

    def watch(self) -> None:
        while not self.done.wait(0.01):
            self.anonymous = max(self.anonymous, memory("RssAnon"))

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.watcher.join()
        self.resident = memory("VmHWM")

    def rows(self, name: str) -> Iterator[Row]:
        note = "of the process, Python and torch included"
        yield row(f"imagenet64/{name}/peak_resident", self.resident / GB, "GB", 1, note, better="lower")
        yield row(f"imagenet64/{name}/peak_anonymous", self.anonymous / GB, "GB", 1, "every 10 ms", better="lower")


def memory(name: str) -> int:
    """A line of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))
