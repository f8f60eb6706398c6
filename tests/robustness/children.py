"""Work in a child of this process, which can be killed, or limited, and needs no torch imported anew."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import torch._dynamo  # noqa: F401, which the first optimiser imports, for seconds: once here, not in every child


def in_child(work: Callable[[], int], said: Path = Path(os.devnull)) -> int:
    """The exit status of ``work``, or less the signal that killed it; what it prints goes to ``said``."""
    child = os.fork()
    if child == 0:
        status = 99
        try:
            with said.open("a") as file, redirect_stdout(file), redirect_stderr(file):
                try:
                    status = work()
                except BaseException:  # noqa: BLE001, a child must not go on with its parent's tests
                    traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
