"""Image data sets as they lie on disk: ``load`` finds the format; one module per format reads it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from poisonkit.data.cifar import read_cifar10, read_cifar100
from poisonkit.data.digits import read_digits, read_digits_32
from poisonkit.data.folder import read_folder
from poisonkit.data.gtsrb import read_gtsrb
from poisonkit.data.imagenet64 import read_imagenet64, unconverted
from poisonkit.data.parquet import read_parquet
from poisonkit.data.synthetic import FILE, read_synthetic
from poisonkit.data.tiny_imagenet import read_tiny_imagenet
from poisonkit.errors import DataError, fail, require
from poisonkit.types import ImageDataset

Split = tuple[ImageDataset, ImageDataset]


@dataclass(frozen=True)
class Layout:
    """A way a data set may lie in its folder.

    holds    what the folder holds, for a person
    markers  patterns of a file or folder; the one that holds it goes to ``read``
    read     folder -> (train, test)
    sized    whether ``read`` takes ``size=``
    """

    holds: str
    markers: tuple[str, ...]
    read: Callable[..., Split]
    sized: bool = False


@dataclass(frozen=True)
class Dataset:
    """A name ``load`` knows.

    summary  one line: what it is
    source   who made it
    folders  where it usually lies below ``root``
    layouts  the formats it is found in, tried in this order
    classes  how many it must have, 0 for any
    """

    summary: str
    source: str
    folders: tuple[str, ...] = ()
    layouts: tuple[Layout, ...] = ()
    classes: int = 0


PARQUET = Layout(
    "train*.parquet and test*.parquet or validation*.parquet (Hugging Face)",
    ("train*.parquet", "data/train*.parquet", "plain_text/train*.parquet"),
    read_parquet,
    sized=True,
)

TINY_IMAGENET = Layout(
    "wnids.txt, words.txt, train and val (as published)", ("wnids.txt",), read_tiny_imagenet, sized=True
)
STANFORD = "Stanford CS231N, http://cs231n.stanford.edu/tiny-imagenet-200.zip"

# those that come with the package
EMBEDDED: dict[str, Callable[[], Split]] = {"digits": read_digits, "digits-32": read_digits_32}

#: Every data set that :func:`load` knows
DATASETS: dict[str, Dataset] = {
    "digits": Dataset(
        "1,797 handwritten digits, 10 classes, 1x8x8; comes with the package",
        "Alpaydin, Kaynak 1998, UCI, doi:10.24432/C50P49, CC BY 4.0",
    ),
    "digits-32": Dataset(
        "the same digits enlarged to 3x32x32, for where photographs are wanted and none are at hand",
        "Alpaydin, Kaynak 1998, UCI, doi:10.24432/C50P49, CC BY 4.0",
    ),
    "cifar10": Dataset(
        "60,000 photographs, 10 classes, 3x32x32",
        "Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/cifar.html",
        ("cifar-10-batches-py", "cifar10/cifar-10-batches-py", "cifar10", "cifar-10"),
        (
            Layout("data_batch_1..5, test_batch, batches.meta (python pickles)", ("data_batch_1",), read_cifar10),
            PARQUET,
        ),
        classes=10,
    ),
    "cifar100": Dataset(
        "60,000 photographs, 100 classes, 3x32x32",
        "Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/cifar.html",
        ("cifar-100-python", "cifar100/cifar-100-python", "cifar100", "cifar-100"),
        (Layout("train, test and meta (pickles)", ("meta",), read_cifar100), PARQUET),
        classes=100,
    ),
    "imagenet64": Dataset(
        "1,331,167 photographs, 1000 classes, 3x64x64 (or 32, or 16); memory-mapped",
        "Chrabaszcz et al. 2017, https://arxiv.org/abs/1707.08819",
        ("imagenet64",),
        (
            Layout("index.json, written by poisonkit.data.imagenet64.convert", ("index.json",), read_imagenet64),
            Layout("train_data_batch_1..10 and val_data, to be converted", ("train_data_batch_*",), unconverted),
        ),
        classes=1000,
    ),
    "tiny-imagenet": Dataset(
        "110,000 photographs, 200 classes, 3x64x64",
        STANFORD,
        ("tiny-imagenet-200", "tiny-imagenet", "tiny_imagenet"),
        (TINY_IMAGENET, PARQUET),
    ),
    "tiny-imagenet-50": Dataset(
        "27,500 photographs, 50 classes of Tiny ImageNet, 3x64x64",
        STANFORD,
        ("tiny-imagenet-50",),
        (PARQUET,),
        classes=50,
    ),
    "gtsrb": Dataset(
        "51,839 traffic signs, 43 classes, resized to 3x32x32 or as asked",
        "Stallkamp et al. 2012, https://benchmark.ini.rub.de/gtsrb_dataset.html",
        ("GTSRB", "gtsrb", "gtsrb/GTSRB"),
        (
            Layout(
                "Final_Training, Final_Test and GT-final_test.csv (as published)",
                ("Final_Training",),
                read_gtsrb,
                sized=True,
            ),
        ),
    ),
    "folder": Dataset(
        "any pictures in train/<class>/*.png and test/<class>/*.png, read as RGB",
        "yours",
        layouts=(Layout("train/<class>/*.png and test/<class>/*.png", ("train",), read_folder, sized=True),),
    ),
    "parquet": Dataset(
        "any folder of image shards in the Hugging Face parquet layout, read as RGB",
        "https://huggingface.co/docs/datasets",
        layouts=(PARQUET,),
    ),
    "synthetic": Dataset(
        "a condensed training set of float pixels, with the test images of the data that it was made from",
        "`poisonkit condense`",
        layouts=(Layout(FILE, (FILE,), read_synthetic),),
    ),
}


def load(name: str, root: str | os.PathLike[str] | None = None, *, size: int | None = None) -> Split:
    """The data set ``name`` (a key of ``DATASETS``): (train, test).

    ``root`` is the folder that holds the data set, the folder it lies in, or the file that marks it; the digits need
    none. The format is found by its files. ``size`` resizes pictures to size x size pixels, for formats of encoded
    pictures.

    Raises ArgumentError for an unknown name or a size that cannot be had, DataError where nothing is found or a file
    is not what its format says, and MissingError without the packages a format needs.
    """
    require(name in DATASETS, "name", f"one of {', '.join(DATASETS)}", repr(name))
    require(size is None or size > 0, "size", "1 pixel or more", size)
    dataset = DATASETS[name]
    if name in EMBEDDED:
        require(size is None, "size", f"left out: {name} holds raw pixels", size)
        return EMBEDDED[name]()
    if root is None:
        fail("root", f"the folder that holds {name}", None)
    folder, layout = _find(name, dataset, Path(root))
    require(size is None or layout.sized, "size", f"left out: {folder} holds raw pixels", size)
    train, test = layout.read(folder) if size is None else layout.read(folder, size=size)
    if dataset.classes:
        require(
            train.num_classes == dataset.classes,
            str(folder),
            f"{name}, {dataset.classes} classes",
            f"{train.num_classes} classes",
            "point root at another folder",
            DataError,
        )
    return train, test


def _find(name: str, dataset: Dataset, root: Path) -> tuple[Path, Layout]:
    """The folder the data set lies in, and how."""
    if root.is_file() and any(root.match(marker) for layout in dataset.layouts for marker in layout.markers):
        root = root.parent
    require(root.is_dir(), "root", "a folder that exists", root, error=DataError)
    places = [root / folder for folder in dataset.folders] + [root]
    layouts = dataset.layouts
    matches = [
        (match.parent, layout)
        for place in places
        for layout in layouts
        for marker in layout.markers
        for match in sorted(place.glob(marker))
    ]
    holds = " or ".join(layout.holds for layout in layouts)
    looked = ", ".join(map(str, places))
    require(bool(matches), name, f"a folder of {holds}", f"none in {looked}", "point root at it", DataError)
    return matches[0]
