"""CIFAR's pickled batches, in the layout of the published archives."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import poisonkit.data as data
from poisonkit.data.cifar import read_cifar10
from poisonkit.errors import ArgumentError, DataError

ROWS = 4
ENDLESS: list[object] = []
ENDLESS += [ENDLESS] * ROWS
NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def batch(seed: int, classes: int = 10, key: str = "labels") -> dict[str, object]:
    random = np.random.default_rng(seed)
    return {
        "data": random.integers(0, 256, (ROWS, 3072), dtype=np.uint8),
        key: random.integers(0, classes, ROWS).tolist(),
        "batch_label": f"batch {seed}",
        "filenames": [f"{i}.png" for i in range(ROWS)],
    }


def write_cifar10(folder: Path, dumps: Callable[[dict[str, object]], bytes]) -> Path:
    folder.mkdir(parents=True)
    for i in range(1, 6):
        (folder / f"data_batch_{i}").write_bytes(dumps(batch(i)))
    (folder / "test_batch").write_bytes(dumps(batch(6)))
    (folder / "batches.meta").write_bytes(dumps({"label_names": NAMES, "num_cases_per_batch": ROWS}))
    return folder


def dumper(protocol: int) -> Callable[[dict[str, object]], bytes]:
    return lambda values: pickle.dumps(values, protocol)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_cifar10(tmp_path / "cifar-10-batches-py", dumper(2))


@pytest.mark.parametrize("writer", ["python 2", 2, 3, 4, 5])
def test_pixels_labels_and_channels_of_every_writer(
    tmp_path: Path, writer: object, python2_pickle: Callable[[dict[str, object]], bytes]
) -> None:
    dumps = dumper(writer) if isinstance(writer, int) else python2_pickle
    write_cifar10(tmp_path / "cifar-10-batches-py", dumps)
    train, test = data.load("cifar10", tmp_path)
    assert (len(train), len(test), train.classes) == (5 * ROWS, ROWS, tuple(NAMES))
    for i in range(5):
        want = batch(i + 1)
        rows = slice(i * ROWS, (i + 1) * ROWS)
        assert train.labels[rows].tolist() == want["labels"]
        # byte 1024·c + 32·y + x of a row is channel c (red, green, blue) of the pixel in line y and column x
        assert train.images[rows][1, 2, 3, 4] == want["data"][1, 2 * 1024 + 3 * 32 + 4]
        np.testing.assert_array_equal(train.images[rows].reshape(ROWS, -1).numpy(), want["data"])
    np.testing.assert_array_equal(test.images.reshape(ROWS, -1).numpy(), batch(6)["data"])
    train.images[0, 0, 0, 0] = 1  # in memory, and ours to change


def test_root_may_be_the_folder_its_parent_or_a_string(folder: Path) -> None:
    want = data.load("cifar10", folder)[0].digest()
    assert data.load("cifar10", folder.parent)[0].digest() == want
    assert data.load("cifar10", str(folder))[0].digest() == want
    assert read_cifar10(str(folder))[0].digest() == want


def test_cifar100_reads_the_fine_classes(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    names = [f"class {k}" for k in range(100)]
    for name, seed in (("train", 1), ("test", 2)):
        values = batch(seed, 100, "fine_labels") | {"coarse_labels": [0] * ROWS}
        (folder / name).write_bytes(pickle.dumps(values, 2))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": names, "coarse_label_names": ["all"]}, 2))
    train, test = data.load("cifar100", tmp_path)
    assert train.labels.tolist() == batch(1, 100, "fine_labels")["fine_labels"]
    np.testing.assert_array_equal(test.images.reshape(ROWS, -1).numpy(), batch(2, 100)["data"])
    assert test.classes == tuple(names)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"labels": [0, 1, 2, 10]}, r"labels must be in 0\.\.9, got 0\.\.10"),
        ({"labels": [0, 1, 2, -1]}, r"labels must be in 0\.\.9, got -1\.\.2"),
        ({"labels": [0, 1, 2]}, r"labels must be of shape \[4\]"),
        ({"labels": [0, 1, 2, "cat"]}, "labels must be whole numbers"),
        ({"labels": [0, 1, 2, 1 << 70]}, "labels must be whole numbers"),
        ({"labels": ENDLESS}, "a container must be used once"),
        ({"labels": [0, 1, 2, [3]]}, "labels must be whole numbers"),
        ({"labels": [0.0, 1.0, 2.0, 3.0]}, "labels must be whole numbers"),
        ({"labels": None}, "labels must be whole numbers"),
        ({"data": None}, "data must be an array"),
        ({"data": np.zeros((4, 3072), np.float32)}, r"data must be uint8 \[n, D\], got float32"),
        ({"data": np.zeros((4, 3, 32, 32), np.uint8)}, r"data must be uint8 \[n, D\]"),
        ({"data": np.zeros((4, 3071), np.uint8)}, "data must be of D"),
        ({"data": np.zeros((4, 0), np.uint8)}, "data must be of D"),
        ({"data": np.zeros((4, 12288), np.uint8)}, "must be 32x32 pixels, got 64x64"),
    ],
)
def test_a_batch_that_breaks_a_rule_is_named(folder: Path, change: dict[str, object], rule: str) -> None:
    (folder / "data_batch_3").write_bytes(pickle.dumps(batch(3) | change, 4))
    with pytest.raises(DataError, match=rf"data_batch_3.* {rule}"):
        data.load("cifar10", folder)


@pytest.mark.parametrize("names", [NAMES[:9], "airplane", None, [0] * 10])
def test_meta_must_name_every_class(folder: Path, names: object) -> None:
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}, 2))
    with pytest.raises(DataError, match=r"batches.meta must be a list 'label_names' of 10 names"):
        data.load("cifar10", folder)


@pytest.mark.parametrize("name", ["data_batch_2", "test_batch", "batches.meta"])
def test_a_missing_or_truncated_file_is_named(folder: Path, name: str) -> None:
    path = folder / name
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=name):
        data.load("cifar10", folder)
    path.unlink()
    with pytest.raises(DataError, match=f"{name} must be a readable file"):
        data.load("cifar10", folder)


def test_raw_pixels_are_not_resized(folder: Path) -> None:
    with pytest.raises(ArgumentError, match="size must be left out"):
        data.load("cifar10", folder, size=16)


def test_real_cifar10(data_root: Path) -> None:
    train, test = data.load("cifar10", data_root)
    assert (len(train), len(test), train.shape, train.classes) == (50_000, 10_000, (3, 32, 32), tuple(NAMES))
    assert train.labels.bincount().tolist() == [5000] * 10
    assert test.labels.bincount().tolist() == [1000] * 10
    mean = train.images.float().mean((0, 2, 3))
    assert torch.allclose(mean, torch.tensor([125.3, 123.0, 113.9]), atol=0.2)
