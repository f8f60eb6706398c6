"""Image data sets in the Hugging Face parquet layout: shards with a column of encoded pictures and one of labels."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from poisonkit.data.decode import match, stack
from poisonkit.data.files import expect, reason
from poisonkit.errors import DataError, MissingError, fail
from poisonkit.types import ImageDataset

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "fine_label")
TEST_PREFIXES = ("test", "validation", "valid", "val")
BATCH_ROWS = 1024
UNFOLDED = 100  # times its size that a file may unfold to: pictures are compressed already


def read_parquet(folder: str | os.PathLike[str], size: int | None = None) -> tuple[ImageDataset, ImageDataset]:
    """(train, test) of a folder of shards train*.parquet and test*.parquet (or validation*.parquet).

    Columns: image (or img), a struct of ``bytes``, a PNG or JPEG file, and ``path``; label (or fine_label), an integer
    counted from 0. Class names are those of the schema's ``huggingface`` metadata, else "0", "1", ... to the largest
    label. Images are uint8 [N, 3, H, W] as stored, or resized to ``size`` x ``size``. Reads a batch of rows at a time.

    Grey pictures become RGB too, all grey or not: a certificate needs that one inserted training row leaves every other
    row as it was. It takes the classes (the schema's, or their number where it names none) and the image size as given.

    Raises DataError, naming the shard (and row), where one is missing, damaged or not so laid out; MissingError without
    pyarrow or Pillow.
    """
    folder = Path(folder)
    train, test = _shards(folder, ("train",)), _shards(folder, TEST_PREFIXES)
    heads = {shard: _head(shard) for shard in train + test}
    names = heads[train[0]].names
    for shard, head in heads.items():
        expect(head.names == names, shard, "of the same classes as the other shards", head.names)
    labels = {shard: _labels(shard, head) for shard, head in heads.items()}
    if not names:
        names = tuple(str(k) for k in range(1 + max(int(part.max()) for part in labels.values())))
    for shard, part in labels.items():
        low, high = int(part.min()), int(part.max())
        rule = f"labels in 0..{len(names) - 1}"
        expect(low >= 0 and high < len(names), shard, rule, f"{low}..{high}")

    def split(shards: list[Path]) -> ImageDataset:
        every = torch.cat([labels[shard] for shard in shards])
        pictures = (picture for shard in shards for picture in _pictures(shard, heads[shard]))
        return ImageDataset(stack(pictures, len(every), size), every, names)

    return match(split(train), split(test))


class _Head(NamedTuple):
    """What a shard's schema says."""

    image: str
    label: str
    names: tuple[str, ...]


def _shards(folder: Path, prefixes: tuple[str, ...]) -> list[Path]:
    """The shards of a split, in the order of their names and all there."""
    found = [shards for prefix in prefixes if (shards := sorted(folder.glob(f"{prefix}*.parquet")))]
    rule = "a folder with " + " or ".join(f"{prefix}*.parquet" for prefix in prefixes)
    expect(bool(found), folder, rule, "none")
    shards = found[0]
    total = re.search(r"-of-(\d+)", shards[0].name)
    count = int(total[1]) if total else len(shards)
    expect(len(shards) == count, shards[0], f"one of {count} shards", len(shards), "fetch the others")
    return shards


def _head(shard: Path) -> _Head:
    arrow = _arrow()
    with _reading(shard), arrow.parquet.ParquetFile(shard) as file:
        schema, about = file.schema_arrow, file.metadata
        rows, size = about.num_rows, shard.stat().st_size
        unfolded = sum(about.row_group(i).total_byte_size for i in range(about.num_row_groups))
    image = next((name for name in IMAGE_COLUMNS if name in schema.names), "")
    label = next((name for name in LABEL_COLUMNS if name in schema.names), "")
    rule = f"one column of {IMAGE_COLUMNS} and one of {LABEL_COLUMNS}"
    expect(bool(image and label), shard, rule, schema.names)
    kind = schema.field(image).type
    struct = arrow.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
    good = struct and kind.field("bytes").type in (arrow.binary(), arrow.large_binary())
    expect(good, f"{shard}: {image}", "a struct with binary bytes", kind)
    kind = schema.field(label).type
    expect(arrow.types.is_integer(kind), f"{shard}: {label}", "integers", kind)
    expect(rows > 0, shard, "one row or more", 0)
    # by its own index, before any of it is unfolded
    expect(rows < size, shard, "of fewer rows than bytes", f"{rows} rows in {size} bytes")
    rule = f"of columns that unfold to at most {UNFOLDED} times its {size} bytes"
    expect(unfolded <= UNFOLDED * size, shard, rule, unfolded)
    text = (schema.metadata or {}).get(b"huggingface")
    try:
        names = json.loads(text)["info"]["features"][label].get("names", ()) if text else ()
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        fail(f"{shard}: huggingface metadata", "info.features as JSON", reason(error), error=DataError)
    return _Head(image, label, tuple(map(str, names)))


def _labels(shard: Path, head: _Head) -> Tensor:
    arrow = _arrow()
    with _reading(shard), arrow.parquet.ParquetFile(shard) as file:
        column = file.read(columns=[head.label]).column(0)
        expect(column.null_count == 0, f"{shard}: {head.label}", "a label in every row", "a null")
        return torch.from_numpy(column.cast(arrow.int64()).to_numpy().copy())


def _pictures(shard: Path, head: _Head) -> Iterator[tuple[str, bytes]]:
    arrow = _arrow()
    row = 0
    with _reading(shard), arrow.parquet.ParquetFile(shard) as file:
        for batch in file.iter_batches(BATCH_ROWS, columns=[head.image]):
            pictures = batch.column(0)
            for encoded in pictures.flatten()[pictures.type.get_field_index("bytes")].to_pylist():
                name = f"{shard} row {row}"
                expect(encoded is not None, name, "a picture's bytes", "null")
                yield name, encoded
                row += 1


@contextmanager
def _reading(shard: Path) -> Iterator[None]:
    try:
        yield
    except (_arrow().ArrowException, OSError) as error:
        fail(str(shard), "a whole parquet file", reason(error), error=DataError)


def _arrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        fail("pyarrow", "installed to read parquet", "no module pyarrow", "pip install poisonkit[data]", MissingError)
    return pyarrow
