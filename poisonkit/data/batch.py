"""One batch of the CIFAR family: a row of D = 3·s·s bytes per image, a plane of red, then green, then blue."""

from __future__ import annotations

from math import isqrt
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from poisonkit.data.files import expect


def unpack(
    path: Path, data: object, labels: object, num_classes: int, first: int = 0
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The images uint8 [n, 3, s, s] (a view) and labels int64 [n], counted from 0, of a batch read from ``path``.

    ``first`` is the file's number of its first class. Raises DataError, naming the file, where the pixels are not
    uint8 [n, 3·s·s], or the labels not n whole numbers from ``first`` to ``first + num_classes - 1``.
    """

    def check(condition: bool, what: str, rule: str, got: object) -> None:
        expect(condition, f"{path}: {what}", rule, got)

    check(isinstance(data, np.ndarray), "data", "an array", type(data).__name__)
    assert isinstance(data, np.ndarray)
    check(data.ndim == 2 and data.dtype == np.uint8, "data", "uint8 [n, D]", f"{data.dtype} {list(data.shape)}")
    side = isqrt(data.shape[1] // 3)
    check(side > 0 and 3 * side * side == data.shape[1], "data", "of D = 3·s·s bytes a row", data.shape[1])

    numbers = _whole_numbers(labels)
    check(numbers is not None, "labels", "whole numbers", type(labels).__name__)
    assert numbers is not None
    check(numbers.shape == data.shape[:1], "labels", f"of shape [{len(data)}], one per image", list(numbers.shape))
    last = first + num_classes - 1
    if len(numbers):
        low, high = int(numbers.min()), int(numbers.max())
        check(first <= low and high <= last, "labels", f"in {first}..{last}", f"{low}..{high}")
    return data.reshape(-1, 3, side, side), numbers.astype(np.int64) - first


def _whole_numbers(labels: object) -> NDArray[Any] | None:
    # checked one by one: NumPy would unfold lists within lists, and a list twice in itself without end
    if isinstance(labels, list) and all(type(label) is int for label in labels):
        labels = np.array(labels) if labels else np.empty(0, np.int64)
    return labels if isinstance(labels, np.ndarray) and labels.dtype.kind in "iu" else None
