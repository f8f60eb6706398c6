"""The German Traffic Sign Recognition Benchmark as published: PPM pictures and tables GT-*.csv."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import torch

from poisonkit.data.decode import match, stack
from poisonkit.data.files import expect, read_text
from poisonkit.types import ImageDataset

TEST_TABLES = ("GT-final_test.csv", "Final_Test/GT-final_test.csv", "Final_Test/Images/GT-final_test.csv")


def read_gtsrb(folder: str | os.PathLike[str], size: int = 32) -> tuple[ImageDataset, ImageDataset]:
    """(train, test) of a folder GTSRB: uint8 [N, 3, size, size], the class folders "00000" to "00042".

    Reads Final_Training/Images/<class>/GT-<class>.csv, Final_Test/Images, and GT-final_test.csv (with ClassId, from the
    archive of its own) in the folder, in Final_Test or beside the test images. Pictures are of many sizes: each is
    taken whole, with the border of about a tenth around the sign (not cropped to its Roi), and resized to ``size`` x
    ``size``, bilinearly. Rows are in the tables' order.

    Raises DataError, naming the file (and line), where one is missing, damaged or mislabelled; MissingError without
    Pillow. Source: Stallkamp et al., 2012, https://benchmark.ini.rub.de/gtsrb_dataset.html
    """
    folder = Path(folder)
    train_folder, test_folder = folder / "Final_Training" / "Images", folder / "Final_Test" / "Images"
    classes = tuple(sorted(path.name for path in train_folder.glob("[0-9]*") if path.is_dir()))
    numbered = bool(classes) and classes == tuple(f"{k:05d}" for k in range(len(classes)))
    expect(numbered, train_folder, "a folder of classes 00000, 00001, ...", classes)
    train = []
    for k, name in enumerate(classes):
        table = train_folder / name / f"GT-{name}.csv"
        rows = _table(table)
        for label, path in rows:
            expect(label == k, table, f"a table of class {k}", f"class {label} for {path.name}")
        train += rows
    tables = [folder / name for name in TEST_TABLES if (folder / name).is_file()]
    expect(bool(tables), folder, f"a folder with {' or '.join(TEST_TABLES)}", "none")
    test = _table(tables[0], test_folder)
    for label, path in test:
        expect(0 <= label < len(classes), tables[0], f"ClassIds in 0..{len(classes) - 1}", f"{label} for {path.name}")

    def read(rows: list[tuple[int, Path]]) -> ImageDataset:
        images = stack(((str(path), path) for _, path in rows), len(rows), size)
        return ImageDataset(images, torch.tensor([label for label, _ in rows]), classes)

    return match(read(train), read(test))


def _table(table: Path, folder: Path | None = None) -> list[tuple[int, Path]]:
    """The ClassId and picture of each line of a GT-*.csv; pictures lie in ``folder``, or else beside the table."""
    rows = []
    for number, line in enumerate(csv.DictReader(read_text(table).splitlines(), delimiter=";"), 2):
        name, label = line.get("Filename") or "", line.get("ClassId") or ""
        good = name != "" and name == Path(name).name and label.isdecimal()
        expect(good, f"{table} line {number}", "a Filename and its ClassId", f"{name!r} and {label!r}")
        rows.append((int(label), (folder or table.parent) / name))
    expect(bool(rows), table, "a table of pictures", "an empty one")
    return rows
