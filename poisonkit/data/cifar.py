"""CIFAR-10 and CIFAR-100 as their authors publish them: the "python version", pickled batches."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from poisonkit.data.batch import unpack
from poisonkit.data.files import expect
from poisonkit.data.restricted import read_pickle
from poisonkit.types import ImageDataset


def read_cifar10(folder: str | os.PathLike[str]) -> tuple[ImageDataset, ImageDataset]:
    """(train, test) of a folder cifar-10-batches-py: uint8 [N, 3, 32, 32], 10 classes.

    Reads data_batch_1 to data_batch_5, test_batch and batches.meta; raises DataError for the file that is not so.
    Source: Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009,
    https://www.cs.toronto.edu/~kriz/cifar.html
    """
    folder = Path(folder)
    classes = _names(folder / "batches.meta", "label_names", 10)
    train = [_batch(folder / f"data_batch_{i}", "labels", classes) for i in range(1, 6)]
    images, labels = torch.cat([batch.images for batch in train]), torch.cat([batch.labels for batch in train])
    return ImageDataset(images, labels, classes), _batch(folder / "test_batch", "labels", classes)


def read_cifar100(folder: str | os.PathLike[str]) -> tuple[ImageDataset, ImageDataset]:
    """(train, test) of a folder cifar-100-python: uint8 [N, 3, 32, 32], the 100 fine classes.

    Reads train, test and meta; raises DataError for the file that is not so. Source: as ``read_cifar10``.
    """
    folder = Path(folder)
    classes = _names(folder / "meta", "fine_label_names", 100)
    train, test = (_batch(folder / name, "fine_labels", classes) for name in ("train", "test"))
    return train, test


def _names(path: Path, key: str, count: int) -> tuple[str, ...]:
    names = read_pickle(path).get(key)
    good = isinstance(names, list) and len(names) == count and all(isinstance(name, str | bytes) for name in names)
    expect(good, path, f"a list {key!r} of {count} names", type(names).__name__)
    return tuple(name.decode("latin1") if isinstance(name, bytes) else name for name in names or ())


def _batch(path: Path, key: str, classes: tuple[str, ...]) -> ImageDataset:
    batch = read_pickle(path)
    images, labels = unpack(path, batch.get("data"), batch.get(key), len(classes))
    expect(images.shape[2] == 32, path, "32x32 pixels", f"{images.shape[2]}x{images.shape[2]}")
    return ImageDataset(torch.tensor(images), torch.from_numpy(labels), classes)
