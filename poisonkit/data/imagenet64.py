"""Downsampled ImageNet (64, 32 or 16 pixels) as published, and the memory-mapped arrays it is used from.

The archives hold train_data_batch_1 to train_data_batch_10 and val_data, as .npz files or, without a suffix, as
pickles: ``data`` uint8 [n, 3·s·s] and ``labels`` 1 to 1000 in the order of map_clsloc.txt, which is not that of the
WordNet ids. ``convert`` writes them, once, to arrays that open in an instant and need not fit in memory.

Source: Chrabaszcz, Loshchilov, Hutter, A Downsampled Variant of ImageNet, 2017, https://arxiv.org/abs/1707.08819
"""

from __future__ import annotations

import json
import math
import os
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray

from poisonkit import mapped
from poisonkit.data.batch import unpack
from poisonkit.data.files import NO_ARRAY, expect, read_npy, read_text, reason, sha256, written_by
from poisonkit.data.restricted import read_pickle
from poisonkit.errors import DataError, fail, require
from poisonkit.types import ImageDataset

CLASSES = 1000
TRAIN_BATCHES = 10
FORMAT = "poisonkit imagenet64 1"
BLOCK = 1 << 22  # bytes copied at a time
HEADER = 10_000  # bytes of a .npy header that NumPy reads, at most


def convert(
    source: str | os.PathLike[str], destination: str | os.PathLike[str], progress: Callable[[str], None] | None = None
) -> None:
    """Convert the published batches anywhere below ``source`` to a new folder ``destination``.

    The folder gets train_images.npy, val_images.npy (uint8 [N, 3, s, s]), train_labels.npy, val_labels.npy (int64 [N],
    from 0) and index.json (shapes, class names, and the SHA-256 of every source). Class names are those of
    map_clsloc.txt where it lies in ``source``, else "0" to "999". Needs the memory of one batch for pickles, and a few
    megabytes for .npz files. The folder appears whole or not at all; what a killed conversion left behind is swept away
    by the next. ``progress`` is told of each batch done.

    Raises ArgumentError if ``destination`` exists, DataError, naming the file, for a batch that is missing, damaged, or
    whose labels leave 1..1000.
    """
    source, destination = Path(source), Path(destination)
    require(not destination.exists(), "destination", "a new folder", destination, "remove it or choose another")
    batches = [_batch_file(source, f"train_data_batch_{i}") for i in range(1, TRAIN_BATCHES + 1)]
    splits = {"train": batches, "val": [_batch_file(source, "val_data")]}
    index: dict[str, Any] = {"format": FORMAT, "classes": _class_names(source / "map_clsloc.txt")}
    partial = destination.with_name(f".{destination.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        for split, files in splits.items():
            index[split] = _convert_split(files, partial, split, progress)
        shapes = [index[split]["images"][1:] for split in splits]
        expect(shapes[0] == shapes[1], splits["val"][0], f"images of shape {shapes[0]}, as in train", shapes[1])
        with (partial / "index.json").open("w", encoding="utf-8") as file:
            json.dump(index, file, indent=1)
            _sync(file)
        partial.rename(destination)
        _sync_folder(destination.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def read_imagenet64(folder: str | os.PathLike[str]) -> tuple[ImageDataset, ImageDataset]:
    """(train, validation) of a folder that ``convert`` wrote, its images memory-mapped from the files.

    The mapping is private: what is written into images takes memory, and leaves the files as they are. Raises DataError
    where a file is missing or not as index.json says.
    """
    folder = Path(folder)
    path = folder / "index.json"
    text = read_text(path)
    with written_by("poisonkit.data.imagenet64.convert", path, "convert it again"):
        index = json.loads(text)
        classes = tuple(map(str, index["classes"]))
        shapes = {split: list(index[split]["images"]) for split in ("train", "val")}
        form = index["format"]
    good = form == FORMAT and all(len(shape) == 4 for shape in shapes.values())
    expect(good, path, f"of format {FORMAT!r}", f"{form!r}", "convert it again")

    def read(split: str) -> ImageDataset:
        path = folder / f"{split}_images.npy"
        images = mapped.read(path, shapes[split], _array(path, shapes[split], "uint8").offset)
        path = folder / f"{split}_labels.npy"
        labels = torch.tensor(_array(path, shapes[split][:1], "int64"))
        low, high = int(labels.min()), int(labels.max())
        expect(
            low >= 0 and high < len(classes), path, f"in 0..{len(classes) - 1}", f"{low}..{high}", "convert it again"
        )
        return ImageDataset(images, labels, classes)

    return read("train"), read("val")


def unconverted(folder: Path) -> tuple[ImageDataset, ImageDataset]:
    """Say that published batches must be converted first."""
    remedy = "call poisonkit.data.imagenet64.convert(source, destination) once and load the destination"
    fail(str(folder), "a converted data set", "the published batches", remedy, DataError)


def _batch_file(source: Path, name: str) -> Path:
    """The one file of this name, with or without .npz, at any depth."""
    files = sorted(path for path in source.rglob(f"{name}*") if path.name in (name, f"{name}.npz") and path.is_file())
    expect(len(files) == 1, source, f"a folder with one {name} or {name}.npz in it", [str(path) for path in files])
    return files[0]


def _class_names(path: Path) -> list[str]:
    """Class names in label order, of lines "n02119789 1 kit_fox"."""
    if not path.exists():
        return [str(k) for k in range(CLASSES)]
    rows = [line.split() for line in read_text(path).splitlines() if line.strip()]
    names = {row[1]: row[2] for row in rows if len(row) == 3}
    order = [str(k) for k in range(1, CLASSES + 1)]
    expect(set(names) == set(order), path, f"lines 'wnid number name' numbered 1..{CLASSES}", f"{len(names)} numbers")
    return [names[number] for number in order]


def _convert_split(
    files: list[Path], folder: Path, split: str, progress: Callable[[str], None] | None
) -> dict[str, Any]:
    """Append the batches to <split>_images.npy, then their labels to <split>_labels.npy; what the index says of it."""
    labels: list[NDArray[np.int64]] = []
    sources = {}
    shape: tuple[int, ...] = ()
    # a second thread digests each batch while this one copies it: either takes about as long
    with (folder / f"{split}_images.npy").open("wb") as file, ThreadPoolExecutor(1) as other:
        for path in files:
            digest = other.submit(sha256, path)
            shape, numbers = _append(path, file, shape)
            labels.append(numbers)
            sources[path.name] = digest.result()
            if progress:
                progress(f"{path.name}: {len(numbers)} images")
        every = np.concatenate(labels)
        expect(len(every) > 0, files[0], "a batch of images", "none")
        end = file.tell()
        file.seek(0)
        _write_header(file, len(every), shape)
        assert end - file.tell() == len(every) * math.prod(shape)
        _sync(file)
    with (folder / f"{split}_labels.npy").open("wb") as file:
        np.save(file, every)
        _sync(file)
    return {"images": [len(every), *shape], "labels": [len(every)], "sources": sources}


def _append(path: Path, file: IO[bytes], shape: tuple[int, ...]) -> tuple[tuple[int, ...], NDArray[np.int64]]:
    """Add the images of a batch to ``file``, a .npy of images of ``shape`` if not empty; their shape and labels."""
    labels = []
    for images, numbers in _read_batch(path):
        if not shape:
            shape = images.shape[1:]
            _write_header(file, 0, shape)  # room for the count, known at the end
        expect(images.shape[1:] == shape, path, f"images of shape {shape}, as before it", images.shape[1:])
        file.write(np.ascontiguousarray(images).data)
        labels.append(numbers)
    return shape, np.concatenate(labels)


def _read_batch(path: Path) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
    """The images [n, 3, s, s] and labels from 0 of a batch, in parts: at least one, and all of one shape."""
    if path.suffix != ".npz":
        batch = read_pickle(path)
        yield unpack(path, batch.get("data"), batch.get("labels"), CLASSES, first=1)
        return
    try:
        with (
            path.open("rb") as opened,
            np.load(opened, allow_pickle=False) as file,
            file.zip.open("data.npy") as data,
        ):
            shape, dtype = _read_header(path, data)
            # a zip of some kilobytes unfolds to gigabytes
            size, most = file.zip.getinfo("labels.npy").file_size, 8 * shape[0] + HEADER
            expect(size <= most, f"{path}: labels", f"at most {most} bytes for {shape[0]} images", size)
            labels = file["labels"]
            # all is checked before any of it is read, on an array of that shape and type that takes no memory
            images, numbers = unpack(path, np.broadcast_to(np.zeros(1, dtype), shape), labels, CLASSES, first=1)
            shape, rows = images.shape[1:], max(1, BLOCK // math.prod(images.shape[1:]))
            for part in np.split(numbers, range(rows, len(numbers), rows)):
                content = data.read(len(part) * math.prod(shape))
                yield np.frombuffer(content, np.uint8).reshape(len(part), *shape), part
            expect(not data.read(1), f"{path}: data", "as long as its shape says", "more")
    except DataError:
        raise
    except (
        *(LookupError, AttributeError, RuntimeError, zipfile.BadZipFile, zlib.error, struct.error),
        *NO_ARRAY,
    ) as error:
        fail(str(path), "a whole .npz file of data and labels", reason(error), error=DataError)


def _read_header(path: Path, file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of the .npy array that follows in ``file``."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    expect(not fortran, f"{path}: data", "stored row by row", "column by column", "save np.ascontiguousarray(data)")
    return shape, dtype


def _write_header(file: IO[bytes], n: int, shape: tuple[int, ...]) -> None:
    header = {"descr": "|u1", "fortran_order": False, "shape": (n, *shape)}
    np.lib.format.write_array_header_1_0(file, header)


def _array(path: Path, shape: list[int], dtype: str) -> np.memmap[Any, Any]:
    """The array in the file ``path``, checked, on its mapping."""
    array = read_npy(path, "convert it again")
    good = list(array.shape) == shape and array.dtype == dtype and array.flags.c_contiguous
    expect(good, path, f"{dtype} {shape}, as index.json says", f"{array.dtype} {list(array.shape)}", "convert it again")
    return array


def _sync(file: IO[Any]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
