"""Partition and order are functions of what the rows hold, whatever order they come in."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import pytest
import torch

from poisonkit import mapped, ops
from poisonkit.defenses.certified import partition
from poisonkit.defenses.certified.partition import hashes
from poisonkit.errors import ArgumentError
from poisonkit.random import key
from poisonkit.types import ImageDataset

CLASSES = tuple("abc")


def random_data(n: int = 200) -> ImageDataset:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, 1, 4, 8), dtype=torch.uint8, generator=generator)
    return ImageDataset(images, torch.arange(n) % 3, CLASSES)


def by_integers(data: ImageDataset, row: int, hash_label: bool) -> tuple[int, int]:
    """The two hashes of a row in Python integers."""
    content = data.images[row].numpy().tobytes()
    if hash_label:
        content += int(data.labels[row]).to_bytes(8, "little")
    weights = ops.hash_weights(len(content), seed=key(1).integer(64)).tolist()
    first, second = (sum(w * b for w, b in zip(vector, content, strict=True)) % (2**48 + 21) for vector in weights)
    return first, second


@pytest.mark.parametrize("hash_label", [False, True])
def test_against_integers(hash_label: bool) -> None:
    data = random_data()
    expected = [by_integers(data, row, hash_label) for row in range(len(data))]
    assert hashes(data.images.flatten(1), data.labels, key(1), hash_label).tolist() == [list(pair) for pair in expected]
    parts = partition(data, 7, key=key(1), hash_label=hash_label)
    for i, rows in enumerate(parts.rows):
        mine = [row for row in range(len(data)) if expected[row][0] % 7 == i]
        assert rows.tolist() == sorted(mine, key=expected.__getitem__)
    assert (parts.collisions, parts.duplicates) == (0, 0)


@pytest.mark.parametrize("hash_label", [False, True])
def test_pixel_sum(hash_label: bool) -> None:
    data = random_data()
    parts = partition(data, 5, key=key(1), home="pixel_sum", hash_label=hash_label)
    total = data.images.flatten(1).sum(1) + (data.labels if hash_label else 0)  # labels are below 256: one byte each
    for i, rows in enumerate(parts.rows):
        assert set(rows.tolist()) == set((total % 5 == i).nonzero()[:, 0].tolist())


def test_any_row_order_gives_the_same_sequence() -> None:
    data = random_data()
    data = data.take(torch.cat([torch.arange(200), torch.arange(30)]))  # with duplicates
    shuffled = data.take(key(5).permutation(len(data)))
    one, other = partition(data, 4, key=key(1)), partition(shuffled, 4, key=key(1))
    assert one.sizes == other.sizes
    assert (one.duplicates, one.collisions) == (other.duplicates, other.collisions) == (30, 0)
    for mine, theirs in zip(one.rows, other.rows, strict=True):
        assert torch.equal(data.images[mine], shuffled.images[theirs])
        assert torch.equal(data.labels[mine], shuffled.labels[theirs])


FORGED = (
    "133 131 128 128 133 128 128 128 128 130 128 128 129 128 131 128 "
    "133 128 129 128 128 128 133 128 132 132 129 130 128 128 128 128",
    "128 128 130 131 128 129 129 128 129 128 128 129 128 129 128 132 "
    "128 134 128 128 131 133 128 131 128 128 128 128 128 128 128 128",
)


def test_forged_collision_is_ordered_by_content(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two images that collide under both hashes of seed 0, found by lattice reduction; labels break the last tie."""
    pixels = torch.tensor([[int(p) for p in image.split()] for image in FORGED], dtype=torch.uint8)
    images = pixels.reshape(2, 1, 4, 8)
    assert ops.weighted_sum_hash(pixels, ops.hash_weights(32)).tolist() == [[126294090089764, 268845804527303]] * 2
    monkeypatch.setattr(
        type(key(0)), "integer", lambda self, bits=64: 0
    )  # seed 0 of the weights, which the forger knew
    rows = [(0, 2), (1, 1), (0, 0), (1, 1), (0, 2)]
    sequences = set()
    for turn in range(5):
        turned = rows[turn:] + rows[:turn]
        data = ImageDataset(images[[i for i, _ in turned]], torch.tensor([label for _, label in turned]), CLASSES)
        parts = partition(data, 3, key=key(1))
        assert (parts.collisions, parts.duplicates) == (1, 2)
        assert sorted(parts.sizes) == [0, 0, 5]
        sequences.add(tuple(turned[row] for part in parts.rows for row in part.tolist()))
    assert sequences == {((1, 1), (1, 1), (0, 0), (0, 2), (0, 2))}


def test_a_mapped_set_is_partitioned_like_one_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped, "PIECE", 1000)
    data = random_data()
    (tmp_path / "images").write_bytes(data.images.numpy().tobytes())
    on_file = replace(data, images=mapped.read(tmp_path / "images", data.images.shape))
    on_file.images[77] = data.images[77] = data.images[5]  # a change that the file does not have
    for options in ({}, {"hash_label": True}, {"home": "pixel_sum"}):
        one, other = (partition(either, 5, key=key(1), **options) for either in (data, on_file))
        assert [rows.tolist() for rows in one.rows] == [rows.tolist() for rows in other.rows]
        assert (one.duplicates, one.collisions) == (other.duplicates, other.collisions)


def test_many_duplicates_are_counted_and_kept_once() -> None:
    generator = torch.Generator().manual_seed(0)
    kinds = torch.randint(0, 256, (50, 3, 32, 32), dtype=torch.uint8, generator=generator)
    kind, labels = torch.randint(0, 50, (3000,), generator=generator), torch.randint(0, 3, (3000,), generator=generator)
    kind[:2000] = 0  # one image two thousand times, 6 MB
    distinct = len(set(zip(kind.tolist(), labels.tolist(), strict=True)))
    data = ImageDataset(kinds[kind], labels, CLASSES)
    tracemalloc.start()
    parts = partition(data, 4, key=key(1))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (parts.duplicates, parts.collisions) == (3000 - distinct, 0)
    assert peak < 2e6
    for rows in parts.rows:  # equal images lie together, by label
        together = list(zip(kind[rows].tolist(), labels[rows].tolist(), strict=True))
        runs = [list(group) for _, group in groupby(together, key=lambda row: row[0])]
        assert len(runs) == len({row[0] for row in together})
        assert all(run == sorted(run) for run in runs)


def test_edges() -> None:
    nothing = ImageDataset(torch.zeros(0, 1, 4, 8, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64), CLASSES)
    assert partition(nothing, 3, key=key(0)).sizes == [0, 0, 0]
    assert partition(random_data(5), 1, key=key(0)).sizes == [5]
    assert sum(partition(random_data(5), 50, key=key(0)).sizes) == 5
    with pytest.raises(ArgumentError, match="buckets must be at least 1, got 0"):
        partition(random_data(5), 0, key=key(0))
