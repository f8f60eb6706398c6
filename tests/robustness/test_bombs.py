"""Files of kilobytes that would unfold to gigabytes are refused before they do."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from poisonkit.data import load
from poisonkit.data.decode import stack
from poisonkit.data.imagenet64 import convert
from poisonkit.errors import DataError


def test_an_npz_whose_labels_unfold_to_gigabytes(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    names = [f"train_data_batch_{i}" for i in range(1, 11)] + ["val_data"]
    for name in names:
        np.savez(source / f"{name}.npz", data=np.zeros((2, 12), np.uint8), labels=np.array([1, 2]))
    with zipfile.ZipFile(source / "val_data.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("data.npy", "w") as member:
            np.lib.format.write_array(member, np.zeros((2, 12), np.uint8))
        with archive.open("labels.npy", "w") as member:
            np.lib.format.write_array_header_1_0(member, {"descr": "<i8", "fortran_order": False, "shape": (1 << 24,)})
            for _ in range(128):
                member.write(bytes(1 << 20))
    assert (source / "val_data.npz").stat().st_size < 1 << 18
    with pytest.raises(DataError, match=r"val_data.npz: labels must be at most .* bytes for 2 images, got 134217"):
        convert(source, tmp_path / "out")


@pytest.mark.parametrize("bomb", ["rows", "picture"])
def test_a_parquet_file_that_unfolds_to_gigabytes(tmp_path: Path, bomb: str) -> None:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    count, content = (1 << 20, b"") if bomb == "rows" else (1, bytes(1 << 26))
    pictures = pa.StructArray.from_arrays(
        [pa.array([content], pa.binary()).take(pa.array(np.zeros(count, np.int64))), pa.nulls(count, pa.string())],
        fields=list(kind),
    )
    table = pa.table({"image": pictures, "label": pa.array(np.zeros(count, np.int64))})
    for name in ("train", "test"):
        pq.write_table(table, tmp_path / f"{name}.parquet", compression="zstd")
    assert (tmp_path / "train.parquet").stat().st_size < 1 << 20
    rule = {"rows": "of fewer rows than bytes", "picture": "of columns that unfold to at most 100 times"}[bomb]
    with pytest.raises(DataError, match=rf"(train|test).parquet must be {rule}"):
        load("parquet", tmp_path)


def test_a_png_of_kilobytes_and_too_many_pixels() -> None:
    file = io.BytesIO()
    Image.new("L", (4097, 4096)).save(file, "PNG")
    assert len(file.getvalue()) < 1 << 16
    with pytest.raises(DataError, match="one must be at most 16777216 pixels, got 4096x4097; resize it beforehand"):
        stack([("one", file.getvalue())], 1)
