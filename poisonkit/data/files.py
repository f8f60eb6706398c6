"""What every reader says and does about the files it reads."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np

from poisonkit.errors import DataError, PoisonkitError, fail, require

# What json.loads raises: of what is no JSON, and of what is nested too deeply
NOT_JSON = (ValueError, RecursionError)
# What NumPy raises of a damaged header, which it reads as Python
NO_ARRAY = (
    OSError,
    ValueError,
    EOFError,
    TypeError,
    SyntaxError,
    TokenError,
    OverflowError,
    MemoryError,
    RecursionError,
)
# What values raise, on their way, that are not of the kind that was written
_ODD = (LookupError, TypeError, AttributeError, ValueError, RuntimeError, OverflowError, MemoryError, RecursionError)


def expect(condition: bool, name: object, rule: str, got: object, remedy: str = "") -> None:
    """Raise DataError, in the shared sentence, unless ``condition`` holds of the file or part of a file ``name``."""
    require(condition, str(name), rule, got, remedy, DataError)


def read_text(path: Path) -> str:
    """The text of the small UTF-8 file ``path``; raises DataError, naming it, if it is missing or not text."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        fail(str(path), "a readable text file", reason(error), error=DataError)


@contextmanager
def written_by(who: str, name: object, remedy: str = "", error: type[PoisonkitError] = DataError) -> Iterator[None]:
    """Raise ``error``, naming the file, where the block takes apart something in it that ``who`` does not write."""
    try:
        yield
    except PoisonkitError:
        raise
    except _ODD as found:
        fail(str(name), f"written by {who}", reason(found), remedy, error)


def read_npy(path: Path, remedy: str = "") -> np.memmap[Any, Any]:
    """The array in the file ``path``, on its private mapping; raises DataError, naming it, where it is none."""
    try:
        return np.lib.format.open_memmap(path, mode="c")
    except NO_ARRAY as error:
        fail(str(path), "a whole .npy file", reason(error), remedy, DataError)


def sha256(path: Path) -> str:
    """The SHA-256 of a file of any size, in hexadecimal."""
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            sha.update(block)
    return sha.hexdigest()


def reason(error: Exception) -> str:
    """An error on one line: its kind and its words."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
