"""Progress for people: one rewritten line on a terminal, an occasional line in a log."""

from __future__ import annotations

import sys
from collections.abc import Callable
from time import monotonic
from typing import TextIO

_LOG_EVERY = 20.0  # seconds between lines where output is not a terminal


class Progress:
    """Say what is going on. ``status`` may be dropped or overwritten; ``line`` stays."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr
        self.terminal = self.stream.isatty()
        self.last = monotonic()

    def status(self, text: str) -> None:
        if self.terminal:
            self.stream.write(f"\r\033[K{text[:120]}")
            self.stream.flush()
        elif monotonic() - self.last >= _LOG_EVERY:
            self.line(text)

    def line(self, text: str) -> None:
        self.stream.write(f"\r\033[K{text}\n" if self.terminal else f"{text}\n")
        self.stream.flush()
        self.last = monotonic()

    def waits(self, what: str) -> Callable[[str], None]:
        """Says of a holder, as ``poisonkit.engine.locks.hold`` tells it, that ``what`` is waited for."""
        return lambda holder: self.line(f"{what} is with {holder}; waiting for it")
