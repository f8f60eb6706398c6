"""Every error poisonkit raises on purpose, and the one sentence they share.

A message reads *name must be RULE, got VALUE; remedy*, on one line.
"""

from __future__ import annotations

from typing import NoReturn


class PoisonkitError(Exception):
    """Any error raised on purpose by poisonkit."""


class ArgumentError(PoisonkitError, ValueError):
    """An argument breaks its rule."""


class BudgetError(PoisonkitError, ValueError):
    """A poison changes more than its budget allows."""


class DataError(PoisonkitError, ValueError):
    """A file is not what its format says: truncated, mislabelled, of the wrong shape, or malicious."""


class RunError(PoisonkitError, RuntimeError):
    """A run directory cannot be written, or cannot be resumed as asked."""


class DivergedError(PoisonkitError, ArithmeticError):
    """Training came to a loss or a weight that is not finite."""


class MissingError(PoisonkitError, ImportError):
    """An optional package or a compiled extension is needed and not there."""


def out_of_memory(error: Exception) -> bool:
    """Whether memory for something was not to be had, on the CPU or on a GPU; torch has no one error for it.

    oneDNN has no word for it either: of a convolution it then says that it could not create a primitive.
    """
    words = ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed", "not create a primitive")
    return isinstance(error, MemoryError) or any(word in str(error).lower() for word in words)


def fail(
    name: str,
    rule: str,
    got: object,
    remedy: str = "",
    error: type[PoisonkitError] = ArgumentError,
) -> NoReturn:
    """Raise ``error`` with the shared sentence."""
    raise error(f"{name} must be {rule}, got {got}" + (f"; {remedy}" if remedy else ""))


def require(
    condition: bool,
    name: str,
    rule: str,
    got: object,
    remedy: str = "",
    error: type[PoisonkitError] = ArgumentError,
) -> None:
    """Raise ``error`` with the shared sentence unless ``condition`` holds."""
    if not condition:
        fail(name, rule, got, remedy, error)
