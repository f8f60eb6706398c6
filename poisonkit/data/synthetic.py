"""A synthetic training set, as `poisonkit condense` writes it: one safetensors file, with the real test images."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from poisonkit.data.decode import match
from poisonkit.data.files import NOT_JSON, expect, reason
from poisonkit.errors import ArgumentError, DataError, fail
from poisonkit.types import ImageDataset

FILE = "synthetic.safetensors"
TENSORS = ("images", "labels", "test_images", "test_labels")


def read_synthetic(folder: str | os.PathLike[str]) -> tuple[ImageDataset, ImageDataset]:
    """(train, test) of a folder with synthetic.safetensors: float32 or uint8 [N, C, H, W], and uint8 [M, C, H, W].

    The file holds images, labels (int64), test_images and test_labels, and as metadata "classes", the names of the
    classes as a JSON list. Training images are floats on the scale 0..255, which they may leave, or bytes.

    Raises DataError where a part is missing, or is not so.
    """
    path = Path(folder) / FILE
    try:
        with safe_open(path, framework="pt") as file:
            names, about = set(file.keys()), file.metadata() or {}
            expect(names >= set(TENSORS), path, f"a file of {', '.join(TENSORS)}", ", ".join(sorted(names)))
            images, labels, test_images, test_labels = (file.get_tensor(name) for name in TENSORS)
    except (OSError, SafetensorError) as error:
        fail(str(path), "a safetensors file", reason(error), error=DataError)
    classes = _classes(path, about.get("classes", ""))
    expect(test_images.dtype == torch.uint8, f"{path}: test_images", "uint8", test_images.dtype)
    finite = not images.is_floating_point() or bool(images.isfinite().all())
    expect(finite, f"{path}: images", "finite", "inf or nan")
    try:
        train, test = ImageDataset(images, labels, classes), ImageDataset(test_images, test_labels, classes)
    except ArgumentError as error:
        fail(str(path), "images with labels", error, error=DataError)
    return match(train, test)


def _classes(path: Path, text: str) -> tuple[str, ...]:
    try:
        names = json.loads(text)
    except NOT_JSON:
        names = None
    listed = isinstance(names, list) and len(names) > 0 and all(isinstance(name, str) for name in names)
    expect(listed, f"{path}: classes", "a JSON list of names", repr(text))
    assert isinstance(names, list)
    return tuple(names)
