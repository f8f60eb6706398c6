"""Bytes of files as tensors: read as they are looked at, written in private, copied for the price of what was written.

A private mapping shows the file, and keeps what is written into it, a page at a time, to itself. The kernel tells which
pages those are (/proc/self/pagemap), so a copy is a new mapping of the same file with those pages carried over: a
hundred poisoned rows of a 16 GB data set take the memory of a hundred rows. Where the kernel does not tell, the bytes
are compared, which costs a pass over them and no more memory.
"""

from __future__ import annotations

import math
import mmap
import os
import sys
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from poisonkit.errors import DataError, fail, require

PAGE = mmap.ALLOCATIONGRANULARITY
PIECE = 1 << 27
COMPARED = 1 << 20
# The memory for writing every page is not set aside, or a file larger than the memory could not be mapped. Python names
# the flag from 3.13 on.
PRIVATE = mmap.MAP_PRIVATE | getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)

# Storage of a mapping -> the open file, which may have lost its name since, and the offset of the storage's first byte.
_FILES: weakref.WeakKeyDictionary[torch.UntypedStorage, tuple[int, int]] = weakref.WeakKeyDictionary()


def read(path: Path, shape: Iterable[int], offset: int = 0) -> Tensor:
    """The bytes of ``path`` from ``offset`` on, uint8 of ``shape``; writing into it leaves the file as it is.

    Raises OSError or ValueError where the file cannot be read or is shorter.
    """
    shape = tuple(shape)
    if 0 in shape:
        return torch.empty(shape, dtype=torch.uint8)
    with path.open("rb") as file:
        return _map(file.fileno(), offset, math.prod(shape)).view(shape)


def copy(x: Tensor) -> Tensor:
    """``x.clone()``; where ``x`` (uint8) is a stretch of a mapped file, only what was written into it takes memory."""
    if not _is_mapped(x):
        return x.clone()
    file, offset = _FILES[x.untyped_storage()]
    fresh = _map(file, offset + int(x.storage_offset()), x.numel())
    mine, other = x.view(-1).numpy(), fresh.numpy()
    for part in _changes(mine, other):
        np.copyto(other[part], mine[part], where=mine[part] != other[part])
    return fresh.view(x.shape)


@dataclass(frozen=True)
class Source:
    """Where the bytes of a mapped tensor are, for another process to map them too.

    path, size, time  the file, its bytes and its age (ns)
    offset, shape     which of its bytes
    written           (place among those, bytes) of what the mapping says otherwise
    """

    path: str
    size: int
    time: int
    offset: int
    shape: tuple[int, ...]
    written: tuple[tuple[int, bytes], ...]

    @classmethod
    def of(cls, x: Tensor) -> Source | None:
        """The source of ``x``; None where it is not mapped, or its file has lost its name."""
        if not _is_mapped(x):
            return None
        file, offset = _FILES[x.untyped_storage()]
        link, about = Path(f"/proc/self/fd/{file}"), os.fstat(file)
        if not link.exists():
            return None
        offset += int(x.storage_offset())
        mine, other = x.view(-1).numpy(), _map(file, offset, x.numel()).numpy()
        written = tuple((part.start, mine[part].tobytes()) for part in _changes(mine, other))
        return cls(str(link.resolve()), about.st_size, about.st_mtime_ns, offset, tuple(x.shape), written)

    def map(self) -> Tensor:
        """The same bytes, mapped here. Raises DataError where the file is not there, or is another."""
        path = Path(self.path)
        try:
            about = path.stat()
            x = read(path, self.shape, self.offset)
        except (OSError, ValueError) as error:
            fail(self.path, "the file that it was before", error, "share it with this machine", DataError)
        same = (about.st_size, about.st_mtime_ns) == (self.size, self.time)
        require(same, self.path, "the file that it was before", "another", "share it with this machine", DataError)
        for place, content in self.written:
            x.view(-1)[place : place + len(content)] = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        return x


def pieces(x: Tensor) -> Iterator[Tensor]:
    """The rows of ``x`` (uint8) in order, in pieces of some 100 MB; those of a mapped file stay no longer in memory."""
    mapped = _is_mapped(x)
    for piece in torch.split(x, max(1, PIECE // max(1, math.prod(x.shape[1:])))):
        yield copy(piece) if mapped else piece


def _is_mapped(x: Tensor) -> bool:
    return x.untyped_storage() in _FILES and x.dtype == torch.uint8 and x.is_contiguous() and x.numel() > 0


def _map(file: int, offset: int, length: int) -> Tensor:
    """``length`` bytes of a file from ``offset`` on, privately mapped."""
    first = offset // PAGE * PAGE
    memory = mmap.mmap(file, offset + length - first, PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE, offset=first)
    pages = torch.from_numpy(np.frombuffer(memory, np.uint8))
    storage, own = pages.untyped_storage(), os.dup(file)
    _FILES[storage] = own, first
    weakref.finalize(storage, os.close, own)
    return pages[offset - first :]


def _written(x: NDArray[np.uint8]) -> Iterator[tuple[int, int]]:
    """Where in the mapped bytes ``x`` something may have been written: (start, stop) of each run of such pages."""
    size = mmap.PAGESIZE
    first, lead = divmod(x.ctypes.data, size)
    written = _private_pages(first, -(-(lead + len(x)) // size))
    edges = np.flatnonzero(np.diff(np.concatenate([[False], written, [False]]).view(np.int8)))
    for start, stop in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        yield max(0, start * size - lead), min(len(x), stop * size - lead)


def _changes(mine: NDArray[np.uint8], file: NDArray[np.uint8]) -> Iterator[slice]:
    """The stretches of the mapped bytes ``mine`` that differ from those of the file."""
    for start, stop in _written(mine):
        for begin in range(start, stop, COMPARED):
            part = slice(begin, min(begin + COMPARED, stop))
            if not np.array_equal(mine[part], file[part]):
                yield part


def _private_pages(first: int, count: int) -> NDArray[np.bool_]:
    """Which pages of this process are its own, no longer the file's; all of them where the kernel does not tell."""
    try:
        with Path("/proc/self/pagemap").open("rb", buffering=0) as file:
            file.seek(8 * first)
            entries = np.fromfile(file, np.uint64, count)
    except OSError:
        entries = np.empty(0, np.uint64)
    if len(entries) < count:
        return np.ones(count, np.bool_)
    # bit 63: in memory; bit 62: swapped out; bit 61: of a file or shared
    state = entries >> np.uint64(61)
    own: NDArray[np.bool_] = (state > 1) & (state % 2 == 0)
    return own
