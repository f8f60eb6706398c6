"""Downsampled ImageNet: published batches to memory-mapped arrays, whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import poisonkit.data as data
from poisonkit.data import imagenet64
from poisonkit.data.imagenet64 import convert, read_imagenet64
from poisonkit.errors import ArgumentError, DataError

NAMES = [f"train_data_batch_{i}" for i in range(1, 11)] + ["val_data"]


def batch(seed: int, side: int = 4) -> dict[str, object]:
    """Batches are of different lengths; the first and last labels of all occur."""
    random = np.random.default_rng(seed)
    n = 2 + seed % 3
    labels = [1, 1000, *random.integers(1, 1001, n - 2).tolist()]
    return {"data": random.integers(0, 256, (n, 3 * side * side), dtype=np.uint8), "labels": labels}


def write(path: Path, values: dict[str, object], kind: object) -> None:
    if kind == "npz":
        np.savez(path.with_name(path.name + ".npz"), **values)
    else:
        path.write_bytes(pickle.dumps(values, kind))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_all(tmp_path / "source", "npz")


def write_all(folder: Path, kind: object, side: int = 4) -> Path:
    folder.mkdir()
    for seed, name in enumerate(NAMES):
        mean = {} if name == "val_data" else {"mean": np.zeros(3 * side * side)}
        write(folder / name, batch(seed, side) | mean, kind)
    return folder


@pytest.mark.parametrize("kind", ["npz", 2, 3, 4, 5])
@pytest.mark.parametrize("side", [4, 8])
def test_pixels_labels_and_channels_as_published(tmp_path: Path, kind: object, side: int) -> None:
    said: list[str] = []
    convert(str(write_all(tmp_path / "source", kind, side)), tmp_path / "imagenet64", said.append)
    train, val = data.load("imagenet64", tmp_path)
    batches = [batch(seed, side) for seed in range(len(NAMES))]
    rows = np.concatenate([one["data"] for one in batches[:-1]])
    np.testing.assert_array_equal(train.images.reshape(len(rows), -1).numpy(), rows)
    np.testing.assert_array_equal(val.images.reshape(len(val), -1).numpy(), batches[-1]["data"])
    # byte s·s·c + s·y + x of a row is channel c of the pixel in line y and column x
    assert train.images[1, 2, 3, 1] == rows[1, 2 * side * side + 3 * side + 1]
    assert train.labels.tolist() == [label - 1 for one in batches[:-1] for label in one["labels"]]
    assert (train.num_classes, train.classes[999], train.shape) == (1000, "999", (3, side, side))
    assert said[0].endswith(": 2 images")
    assert len(said) == len(NAMES)


def test_the_index_has_shapes_names_and_digests(source: Path, tmp_path: Path) -> None:
    lines = [f"n{k:08d} {k} class_{k}" for k in range(1000, 0, -1)]
    (source / "map_clsloc.txt").write_text("\n".join(lines))
    convert(source, tmp_path / "new" / "folder")
    index = json.loads((tmp_path / "new" / "folder" / "index.json").read_text())
    assert index["train"]["images"] == [29, 3, 4, 4]
    path = source / "train_data_batch_7.npz"
    assert index["train"]["sources"][path.name] == hashlib.sha256(path.read_bytes()).hexdigest()
    train, _ = read_imagenet64(tmp_path / "new" / "folder")
    assert (train.classes[0], train.classes[999]) == ("class_1", "class_1000")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["folder"]


def test_batches_may_lie_in_the_folders_of_their_archives(source: Path, tmp_path: Path) -> None:
    part = source / "Imagenet64_train_part2"
    part.mkdir()
    for i in range(6, 11):
        (source / f"train_data_batch_{i}.npz").rename(part / f"train_data_batch_{i}.npz")
    convert(source, tmp_path / "imagenet64")
    assert len(read_imagenet64(tmp_path / "imagenet64")[0]) == 29


def test_images_are_mapped_and_may_be_written(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "imagenet64")
    train, _ = data.load("imagenet64", tmp_path / "imagenet64")
    path = tmp_path / "imagenet64" / "train_images.npy"
    before = path.read_bytes()
    assert str(path) in Path("/proc/self/maps").read_text()
    train.images[:] = 0
    train.labels[:] = 0
    assert not train.images.any()
    assert path.read_bytes() == before
    assert read_imagenet64(tmp_path / "imagenet64")[0].images.any()


def test_deflated_batches(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "stored")
    for seed, name in enumerate(NAMES):
        np.savez_compressed(source / f"{name}.npz", **batch(seed))
    convert(source, tmp_path / "deflated")
    for name in ("train_images.npy", "train_labels.npy", "val_images.npy", "val_labels.npy"):
        assert (tmp_path / "stored" / name).read_bytes() == (tmp_path / "deflated" / name).read_bytes()


def test_a_batch_longer_than_a_block(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imagenet64, "BLOCK", 2 * 48 + 1)  # two images a block
    convert(source, tmp_path / "imagenet64")
    train, _ = read_imagenet64(tmp_path / "imagenet64")
    assert torch.equal(train.images.flatten(1), torch.cat([torch.from_numpy(batch(i)["data"]) for i in range(10)]))


def test_published_batches_must_be_converted_first(source: Path) -> None:
    with pytest.raises(DataError, match=r"call poisonkit.data.imagenet64.convert\(source, destination\)"):
        data.load("imagenet64", source)


def test_the_destination_must_be_new(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="destination must be a new folder"):
        convert(source, tmp_path)


@pytest.mark.parametrize("kind", ["npz", 4])
@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"labels": [0, 1]}, r"labels must be in 1\.\.1000, got 0\.\.1"),
        ({"labels": [1, 1001]}, r"labels must be in 1\.\.1000, got 1\.\.1001"),
        ({"labels": [1]}, r"labels must be of shape \[2\]"),
        ({"labels": np.array([1.0, 2.0])}, "labels must be whole numbers"),
        ({"data": np.zeros((2, 48), np.int32)}, "data must be uint8"),
        ({"data": np.zeros((2, 50), np.uint8)}, "data must be of D"),
        ({"data": np.zeros((0, 48), np.uint8), "labels": [1]}, r"labels must be of shape \[0\]"),
        ({"data": np.zeros((2, 12), np.uint8)}, r"must be images of shape \(3, 4, 4\)"),
    ],
)
def test_a_batch_that_breaks_a_rule_is_named_and_nothing_is_written(
    tmp_path: Path, kind: object, change: dict[str, object], rule: str
) -> None:
    source = write_all(tmp_path / "source", kind)
    write(source / NAMES[8], {"data": np.zeros((2, 48), np.uint8), "labels": [1, 2]} | change, kind)
    with pytest.raises(DataError, match=rf"train_data_batch_9.* {rule}"):
        convert(source, tmp_path / "imagenet64")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_train_and_val_must_be_of_one_size(source: Path, tmp_path: Path) -> None:
    write(source / "val_data", batch(3, 2), "npz")
    with pytest.raises(DataError, match=r"val_data.npz must be images of shape \[3, 4, 4\]"):
        convert(source, tmp_path / "imagenet64")


@pytest.mark.parametrize("name", [NAMES[0], NAMES[9], "val_data"])
def test_every_batch_must_be_there_once(source: Path, tmp_path: Path, name: str) -> None:
    write(source / name, batch(0), 4)
    with pytest.raises(DataError, match=rf"one {name} or {name}.npz"):
        convert(source, tmp_path / "imagenet64")
    (source / name).unlink()
    (source / f"{name}.npz").unlink()
    with pytest.raises(DataError, match=rf"one {name} or {name}.npz"):
        convert(source, tmp_path / "imagenet64")


class Attack:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("kind", ["npz", 2, 4])
def test_a_malicious_batch_is_refused_and_does_nothing(tmp_path: Path, kind: object) -> None:
    source = write_all(tmp_path / "source", kind)
    made = tmp_path / "made"
    write(source / NAMES[0], {"data": np.array([Attack(made)], dtype=object), "labels": [1]}, kind)
    with pytest.raises(DataError, match="train_data_batch_1"):
        convert(source, tmp_path / "imagenet64")
    assert not made.exists()


def test_a_truncated_or_changed_npz_is_refused(source: Path, tmp_path: Path) -> None:
    path = source / "train_data_batch_1.npz"
    content = path.read_bytes()
    pixels = content.index(batch(0)["data"].tobytes())
    flipped = bytearray(content)
    flipped[pixels] ^= 1
    spoiled = [b"", content[:10], content[: len(content) // 2], content[:-1], bytes(flipped), b"PK\x03\x04" * 9]
    for one in spoiled:
        path.write_bytes(one)
        with pytest.raises(DataError, match=r"train_data_batch_1.npz must be a whole .npz file"):
            convert(source, tmp_path / "imagenet64")
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in (("data", batch(0)["data"]), ("labels", np.array(batch(0)["labels"]))):
            with archive.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array(member, array)
                member.write(b"more")
    with pytest.raises(DataError, match=r"train_data_batch_1.npz: data must be as long as its shape says, got more"):
        convert(source, tmp_path / "imagenet64")
    np.savez(path, data=np.asfortranarray(batch(0)["data"]), labels=batch(0)["labels"])
    with pytest.raises(DataError, match=r"data must be stored row by row.*; save np.ascontiguousarray\(data\)"):
        convert(source, tmp_path / "imagenet64")
    np.save(source / "plain.npy", np.zeros(3))
    (source / "plain.npy").rename(path)
    with pytest.raises(DataError, match=r"train_data_batch_1.npz must be a whole .npz file"):
        convert(source, tmp_path / "imagenet64")


@pytest.mark.parametrize("text", ["n0 1 a", "n0 x a\n" * 1000, "\udcff"])
def test_broken_class_names_are_refused(source: Path, tmp_path: Path, text: str) -> None:
    (source / "map_clsloc.txt").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=r"map_clsloc.txt must be"):
        convert(source, tmp_path / "imagenet64")


KILLED = """
import os, signal, sys
from poisonkit.data.imagenet64 import convert
kill = lambda said: said.startswith("train_data_batch_6") and os.kill(os.getpid(), signal.SIGKILL)
convert(sys.argv[1], sys.argv[2], kill)
"""


def test_a_killed_conversion_leaves_nothing_usable_and_the_next_succeeds(source: Path, tmp_path: Path) -> None:
    destination = tmp_path / "imagenet64"
    done = subprocess.run([sys.executable, "-c", KILLED, source, destination], env=environment(), check=False)
    assert done.returncode == -signal.SIGKILL
    assert not destination.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".imagenet64.partial", "source"]
    with pytest.raises(DataError, match="none in"):
        data.load("imagenet64", tmp_path)
    convert(source, destination)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["imagenet64", "source"]
    assert len(read_imagenet64(destination)[0]) == 29


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(data.__file__).parents[2]), *sys.path])}


MEASURED = """
import resource, sys
from poisonkit.data.imagenet64 import convert
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
convert(sys.argv[1], sys.argv[2])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize(("kind", "batches"), [("npz", 0.8), (3, 1.6)])
def test_a_conversion_needs_the_memory_of_a_batch_at_most(tmp_path: Path, kind: object, batches: float) -> None:
    source = tmp_path / "source"
    source.mkdir()
    values = {"data": np.zeros((2000, 12288), np.uint8), "labels": [1] * 2000}  # 24 MiB
    for name in NAMES:
        write(source / name, values, kind)
    command = [sys.executable, "-c", MEASURED, source, tmp_path / "imagenet64"]
    done = subprocess.run(command, env=environment(), check=True, capture_output=True, text=True)
    assert int(done.stdout) < batches * 24_000  # KiB


@pytest.mark.parametrize("name", ["train_images.npy", "val_images.npy", "train_labels.npy", "val_labels.npy"])
def test_a_damaged_conversion_is_named(source: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "imagenet64"
    convert(source, folder)
    content = (folder / name).read_bytes()
    array = np.load(folder / name)
    spoiled: list[bytes] = [b"", content[:50], content[:-1], pickle.dumps(Attack(tmp_path / "made"))]
    for one in spoiled:
        (folder / name).write_bytes(one)
        with pytest.raises(DataError, match=rf"{name} must be a whole .npy file"):
            read_imagenet64(folder)
    for other in (
        array[1:],
        array.astype(np.float32),
        np.asfortranarray(array)[:, ::1] if array.ndim > 1 else array[:-1],
    ):
        np.save(folder / name, other)
        with pytest.raises(DataError, match=rf"{name} must be u?int.* as index.json says"):
            read_imagenet64(folder)
    (folder / name).unlink()
    with pytest.raises(DataError, match=rf"{name} must be a whole .npy file, got FileNotFoundError"):
        read_imagenet64(folder)
    assert not (tmp_path / "made").exists()


def test_labels_out_of_range_in_a_conversion_are_refused(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "imagenet64")
    path = tmp_path / "imagenet64" / "train_labels.npy"
    np.save(path, np.load(path) + 1)
    with pytest.raises(DataError, match=r"train_labels.npy must be in 0\.\.999, got 1\.\.1000"):
        read_imagenet64(tmp_path / "imagenet64")


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"format": "other", "classes": [], "train": {"images": []}, "val": {"images": []}}']
)
def test_a_broken_index_is_named(source: Path, tmp_path: Path, text: str) -> None:
    convert(source, tmp_path / "imagenet64")
    (tmp_path / "imagenet64" / "index.json").write_text(text)
    with pytest.raises(DataError, match=r"index.json must be .*; convert it again"):
        read_imagenet64(tmp_path / "imagenet64")
