"""What every reader says and does about the files it reads."""

from __future__ import annotations

import hashlib
from pathlib import Path

from poisonkit.errors import DataError, fail, require


def expect(condition: bool, name: object, rule: str, got: object, remedy: str = "") -> None:
    """Raise DataError, in the shared sentence, unless ``condition`` holds of the file or part of a file ``name``."""
    require(condition, str(name), rule, got, remedy, DataError)


def read_text(path: Path) -> str:
    """The text of the small UTF-8 file ``path``; raises DataError, naming it, if it is missing or not text."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        fail(str(path), "a readable text file", reason(error), error=DataError)


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
