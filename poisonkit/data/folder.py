"""Folders of pictures, one folder per class: train/<class>/*.png and test/<class>/*.png."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from poisonkit.data.decode import SUFFIXES, match, stack
from poisonkit.data.files import expect
from poisonkit.types import ImageDataset

TEST_FOLDERS = ("test", "val", "validation")


def read_folder(folder: str | os.PathLike[str], size: int | None = None) -> tuple[ImageDataset, ImageDataset]:
    """(train, test) of a folder with train/<class>/ and test/<class>/ (or val, or validation).

    Classes are the names of the folders in train, sorted; rows are sorted by class, then by file name. Pictures are
    PNG, JPEG or PPM files, as stored or resized to ``size`` x ``size``: uint8 [N, 3, H, W]. Grey pictures become RGB
    too, all grey or not: a certificate needs that one inserted training picture leaves every other row as it was. It
    takes the classes (the folders of train) and the image size as given.

    Raises DataError, naming the file or folder, where one is missing, empty, damaged, of another size than the others,
    or of a class that train lacks; MissingError without Pillow.
    """
    folder = Path(folder)
    train = folder / "train"
    test = next((folder / name for name in TEST_FOLDERS if (folder / name).is_dir()), folder / "test")
    for part in (train, test):
        expect(part.is_dir(), part, "a folder of classes", "none")
    classes = _subfolders(train)
    expect(bool(classes), train, "a folder of classes", "an empty one")
    for name in _subfolders(test):
        expect(name in classes, test / name, "a class of train", repr(name))
    return match(_read(train, classes, size), _read(test, classes, size))


def _subfolders(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(path.name for path in folder.iterdir() if path.is_dir()))


def _read(folder: Path, classes: tuple[str, ...], size: int | None) -> ImageDataset:
    files = [
        (label, path)
        for label, name in enumerate(classes)
        for path in sorted((folder / name).glob("*"))
        if path.suffix.lower() in SUFFIXES
    ]
    expect(bool(files), folder, f"a folder of pictures <class>/*{'|'.join(sorted(SUFFIXES))}", "none")
    images = stack(((str(path), path) for _, path in files), len(files), size)
    return ImageDataset(images, torch.tensor([label for label, _ in files]), classes)
