"""Tiny ImageNet as its authors publish it: wnids.txt, words.txt, train/<wnid>/images and val/images."""

from __future__ import annotations

import os
import re
from pathlib import Path

import torch

from poisonkit.data.decode import match, stack
from poisonkit.data.files import expect, read_text
from poisonkit.types import ImageDataset


def read_tiny_imagenet(folder: str | os.PathLike[str], size: int | None = None) -> tuple[ImageDataset, ImageDataset]:
    """(train, validation) of a folder tiny-imagenet-200: uint8 [N, 3, 64, 64], its wnids sorted as classes.

    Classes are named by the first of their words in words.txt. Training rows are sorted by class, then by file name;
    validation rows are in the order of val_annotations.txt. The unlabelled test images are not read. ``size`` resizes
    to size x size.

    Raises DataError, naming the file, where one is missing, damaged or mislabelled; MissingError without Pillow.
    Source: Stanford CS231N, http://cs231n.stanford.edu/tiny-imagenet-200.zip
    """
    folder = Path(folder)
    listed = read_text(folder / "wnids.txt").split()
    for wnid in listed:
        expect(re.fullmatch(r"n\d{8}", wnid) is not None, folder / "wnids.txt", "a list of wnids", repr(wnid))
    wnids = sorted(listed)
    expect(0 < len(set(wnids)) == len(wnids), folder / "wnids.txt", "a list of distinct wnids", f"{len(wnids)} lines")
    words = dict(line.split("\t", 1) for line in read_text(folder / "words.txt").splitlines() if "\t" in line)
    classes = tuple(words.get(wnid, wnid).split(",")[0].strip() for wnid in wnids)

    train = []
    for label, wnid in enumerate(wnids):
        files = sorted((folder / "train" / wnid / "images").glob("*.JPEG"))
        expect(bool(files), folder / "train" / wnid / "images", "a folder of *.JPEG", "none")
        train += [(label, path) for path in files]

    annotations = folder / "val" / "val_annotations.txt"
    val = []
    for number, line in enumerate(read_text(annotations).splitlines(), 1):
        name, _, rest = line.partition("\t")
        wnid = rest.partition("\t")[0]
        expect(name == Path(name).name and wnid in wnids, f"{annotations} line {number}", "a file and its wnid", line)
        val.append((wnids.index(wnid), folder / "val" / "images" / name))
    expect(bool(val), annotations, "a list of files", "an empty one")

    def read(files: list[tuple[int, Path]]) -> ImageDataset:
        images = stack(((str(path), path) for _, path in files), len(files), size)
        return ImageDataset(images, torch.tensor([label for label, _ in files]), classes)

    return match(read(train), read(val))
