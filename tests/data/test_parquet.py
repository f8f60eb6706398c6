"""Hugging Face parquet shards of pictures."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import poisonkit.data as data
from poisonkit.data.parquet import BATCH_ROWS, read_parquet
from poisonkit.errors import DataError, MissingError

Encode = Callable[..., bytes]


def pictures(n: int, seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, *(shape or (5, 7, 3))), dtype=np.uint8)


def shard(
    path: Path,
    encoded: list[bytes | None],
    labels: list[int | None],
    names: list[str] | None = None,
    image: str = "image",
    label: str = "label",
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    column = pa.array([{"bytes": one, "path": f"{i}.png"} for i, one in enumerate(encoded)], kind)
    table = pa.table({image: column, label: pa.array(labels, pa.int64())})
    if names is not None:
        features = {image: {"_type": "Image"}, label: {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=3)


@pytest.fixture
def write(tmp_path: Path, encode: Encode) -> Callable[..., Path]:
    """One train and one test shard of these pixels, labels and class names."""

    def write(train: np.ndarray, test: np.ndarray, names: list[str] | None = None) -> Path:
        for name, pixels in (("train", train), ("test", test)):
            labels = [i % 2 for i in range(len(pixels))]
            shard(tmp_path / f"{name}-00000-of-00001.parquet", [encode(one) for one in pixels], labels, names)
        return tmp_path

    return write


def test_pixels_labels_and_names_as_written(write: Callable[..., Path]) -> None:
    train_pixels, test_pixels = pictures(8, 1), pictures(3, 2)
    train, test = data.load("parquet", write(train_pixels, test_pixels, ["cat", "dog"]))
    np.testing.assert_array_equal(train.images.permute(0, 2, 3, 1).numpy(), train_pixels)
    np.testing.assert_array_equal(test.images.permute(0, 2, 3, 1).numpy(), test_pixels)
    assert train.images[4, 2, 1, 6] == train_pixels[4, 1, 6, 2]  # blue of line 1, column 6
    assert train.labels.tolist() == [0, 1, 0, 1, 0, 1, 0, 1]
    assert train.classes == test.classes == ("cat", "dog")


def test_without_metadata_classes_are_numbers(write: Callable[..., Path]) -> None:
    assert data.load("parquet", write(pictures(3, 1), pictures(3, 2)))[0].classes == ("0", "1")


def test_shards_are_read_in_order_and_all(tmp_path: Path, encode: Encode) -> None:
    pixels = pictures(6, 3)
    for i in range(3):
        rows = slice(2 * i, 2 * i + 2)
        shard(tmp_path / f"train-0000{i}-of-00003.parquet", [encode(one) for one in pixels[rows]], [i, i])
    shard(tmp_path / "validation-00000-of-00001.parquet", [encode(pixels[0])], [0])
    train, _ = read_parquet(str(tmp_path))
    np.testing.assert_array_equal(train.images.permute(0, 2, 3, 1).numpy(), pixels)
    assert train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    (tmp_path / "train-00001-of-00003.parquet").unlink()
    with pytest.raises(DataError, match=r"train-00000-of-00003.parquet must be one of 3 shards, got 2"):
        read_parquet(tmp_path)


def test_more_rows_than_one_batch(tmp_path: Path, encode: Encode) -> None:
    pixels = pictures(BATCH_ROWS + 5, 4, 2, 2)
    for name in ("train", "test"):
        shard(tmp_path / f"{name}.parquet", [encode(one) for one in pixels], [0] * len(pixels))
    np.testing.assert_array_equal(read_parquet(tmp_path)[0].images[:, 0].numpy(), pixels)


@pytest.mark.parametrize("place", ["", "data", "plain_text"])
@pytest.mark.parametrize("test", ["test", "validation", "valid"])
def test_cifar10_as_the_hub_has_it(tmp_path: Path, encode: Encode, place: str, test: str) -> None:
    folder = tmp_path / "cifar10" / place
    for name in ("train", test):
        encoded = [encode(one) for one in pictures(2, 1, 32, 32, 3)]
        shard(folder / f"{name}-00000-of-00001.parquet", encoded, [0, 9], [f"{k}" for k in range(10)], image="img")
    assert data.load("cifar10", tmp_path)[0].labels.tolist() == [0, 9]
    assert data.load("cifar10", tmp_path / "cifar10")[0].labels.tolist() == [0, 9]


def test_another_data_set_under_the_name_is_refused(write: Callable[..., Path]) -> None:
    with pytest.raises(DataError, match="must be cifar10, 10 classes, got 2 classes"):
        data.load("cifar10", write(pictures(2, 1), pictures(2, 1)))


def test_grey_becomes_rgb_alone_and_among_colour(tmp_path: Path, encode: Encode) -> None:
    grey, colour = pictures(1, 1, 5, 7)[0], pictures(1, 2)[0]
    shard(tmp_path / "test.parquet", [encode(grey)], [0])
    for first, second in ((grey, grey), (grey, colour), (colour, grey)):
        shard(tmp_path / "train.parquet", [encode(first), encode(second)], [0, 1])
        train, test = read_parquet(tmp_path)
        assert train.shape == test.shape == (3, 5, 7)
        for image, pixels in zip((*train.images, *test.images), (first, second, grey), strict=True):
            want = pixels[:, :, None] if pixels.ndim == 2 else pixels
            assert (image.permute(1, 2, 0).numpy() == want).all()


def test_size_resizes(tmp_path: Path, encode: Encode) -> None:
    for name in ("train", "test"):
        shard(tmp_path / f"{name}.parquet", [encode(np.full((h, 6), 9, np.uint8)) for h in (4, 8)], [0, 1])
    with pytest.raises(DataError, match=r"train.parquet row 1 must be 4x6 pixels.*got 8x6; pass size="):
        data.load("parquet", tmp_path)
    train, _ = data.load("parquet", tmp_path, size=3)
    assert torch.equal(train.images, torch.full((2, 3, 3, 3), 9, dtype=torch.uint8))


def test_train_and_test_of_other_sizes_are_refused(write: Callable[..., Path]) -> None:
    with pytest.raises(DataError, match=r"test images must be 5x7 pixels.* got 2x2; pass size="):
        data.load("parquet", write(pictures(2, 1), pictures(2, 1, 2, 2)))


@pytest.mark.parametrize(
    ("labels", "names", "rule"),
    [
        ([0, 2], ["a", "b"], r"labels in 0\.\.1, got 0\.\.2"),
        ([0, -1], ["a", "b"], r"labels in 0\.\.1, got -1\.\.0"),
        ([0, -1], None, r"labels in 0\.\.\d, got -1\.\.0"),
        ([0, None], ["a", "b"], "a label in every row"),
        ([0, 1], ["a", "c"], "of the same classes as the other shards"),
    ],
)
def test_labels_out_of_range_are_refused(
    write: Callable[..., Path], encode: Encode, labels: list[int | None], names: list[str] | None, rule: str
) -> None:
    folder = write(pictures(2, 1), pictures(2, 1), names and ["a", "b"])
    shard(folder / "test-00000-of-00001.parquet", [encode(one) for one in pictures(2, 1)], labels, names)
    with pytest.raises(DataError, match=rf"test-00000-of-00001.parquet.* must be .*{rule}"):
        read_parquet(folder)


@pytest.mark.parametrize(
    ("spoil", "rule"),
    [
        (lambda png: None, "a picture's bytes, got null"),
        (lambda png: b"", "a whole PNG, JPEG or PPM picture"),
        (lambda png: b"not a picture", "a whole PNG, JPEG or PPM picture"),
        (lambda png: png[: len(png) // 2], "a whole PNG, JPEG or PPM picture"),
    ],
)
def test_a_damaged_picture_is_named(
    tmp_path: Path, encode: Encode, spoil: Callable[[bytes], bytes | None], rule: str
) -> None:
    encoded = [encode(one) for one in pictures(2, 1, 32, 32, 3)]
    shard(tmp_path / "test.parquet", encoded, [0, 1])
    shard(tmp_path / "train.parquet", [encoded[0], spoil(encoded[1])], [0, 1])
    with pytest.raises(DataError, match=rf"train.parquet row 1 must be {rule}"):
        read_parquet(tmp_path)


def test_a_damaged_shard_is_named(write: Callable[..., Path]) -> None:
    folder = write(pictures(20, 1), pictures(2, 1), ["a", "b"])
    path = folder / "train-00000-of-00001.parquet"
    content = path.read_bytes()
    for length in (0, 3, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(DataError, match=r"train-00000-of-00001.parquet must be a whole parquet file"):
            read_parquet(folder)


def test_every_broken_schema_is_refused(tmp_path: Path, encode: Encode) -> None:
    good = {"image": pa.array([{"bytes": encode(pictures(1, 1)[0])}]), "label": pa.array([0])}
    broken = [
        ({"label": good["label"]}, "one column of"),
        ({"image": good["image"]}, "one column of"),
        (good | {"image": pa.array([b"png"])}, "a struct with binary bytes"),
        (good | {"image": pa.array([{"path": "a.png"}])}, "a struct with binary bytes"),
        (good | {"image": pa.array([{"bytes": "text"}])}, "a struct with binary bytes"),
        (good | {"label": pa.array(["cat"])}, "integers"),
        (good | {"label": pa.array([0.5])}, "integers"),
        ({name: column[:0] for name, column in good.items()}, "one row or more"),
    ]
    pq.write_table(pa.table(good), tmp_path / "test.parquet")
    for columns, rule in broken:
        pq.write_table(pa.table(columns), tmp_path / "train.parquet")
        with pytest.raises(DataError, match=rf"train.parquet.* must be {rule}"):
            read_parquet(tmp_path)
    for text in ("{", "[]", '{"info": {}}', '{"info": {"features": {"label": 3}}}'):
        pq.write_table(pa.table(good).replace_schema_metadata({"huggingface": text}), tmp_path / "train.parquet")
        with pytest.raises(DataError, match=r"train.parquet: huggingface metadata must be info.features as JSON"):
            read_parquet(tmp_path)


def test_a_missing_split_is_named(write: Callable[..., Path]) -> None:
    folder = write(pictures(2, 1), pictures(2, 1))
    (folder / "test-00000-of-00001.parquet").unlink()
    with pytest.raises(DataError, match=r"must be a folder with test\*.parquet or validation\*.parquet"):
        read_parquet(folder)


@pytest.mark.parametrize(("module", "name"), [("pyarrow", "pyarrow"), ("PIL", "Pillow")])
def test_a_missing_package_says_what_to_install(
    write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, module: str, name: str
) -> None:
    folder = write(pictures(2, 1), pictures(2, 1))
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingError, match=rf"{name} must be installed .*; pip install poisonkit\[data\]"):
        read_parquet(folder)


def test_real_tiny_imagenet(data_root: Path) -> None:
    train, test = data.load("tiny-imagenet-50", data_root)
    assert (len(train), len(test), train.shape, train.num_classes) == (25_000, 2_500, (3, 64, 64), 50)
    assert train.labels.bincount().tolist() == [500] * 50
    assert test.labels.bincount().tolist() == [50] * 50
    assert train.classes[0] == "goldfish"
    # goldfish are orange
    red, green, blue = train.images[train.labels == 0].float().mean((0, 2, 3)).tolist()
    assert red > green > blue
