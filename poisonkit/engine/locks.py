"""Locks between processes, on one machine or on several that share a file system, that end with their holder."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from socket import gethostname
from typing import TextIO

from poisonkit.errors import RunError, fail


@contextmanager
def hold(path: Path, *, wait: bool = True, tell: Callable[[str], None] = lambda holder: None) -> Iterator[str | None]:
    """Hold the lock of the file ``path`` against every other process; where one has it, ``tell`` who, and wait.

    Gives None, or, where ``wait`` is False and another process has it, who that is, and then holds nothing.
    The system ends the lock with its holder, however that ends, so none is ever stale. The file stays where it
    is: to remove one that others may be waiting for would let two in. Raises RunError where there are no locks.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")  # for writing, without which NFS has no exclusive lock
    except OSError as error:
        fail("lock", "a file that can be written", path, f"{error}; choose another directory", RunError)
    with file:
        holder = _taken(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if holder and not wait:
            yield holder
            return
        if holder:
            tell(holder)
            _taken(file, fcntl.LOCK_EX)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {gethostname()}")
        file.flush()
        yield None


def _taken(file: TextIO, how: int) -> str:
    """Nothing once this process has the lock; else who has it."""
    try:
        fcntl.flock(file, how)
    except BlockingIOError:
        file.seek(0)
        return file.read() or "another process"
    except OSError as error:
        fail("run directory", "on a file system with locks", file.name, f"{error}; choose another", RunError)
    return ""
