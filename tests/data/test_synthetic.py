"""A synthetic set on disk: floats beyond 0..255 come back as they were, damage is named, a run reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from poisonkit.data import load
from poisonkit.defenses import DPA
from poisonkit.errors import ArgumentError, DataError
from poisonkit.random import key


def tensors() -> dict[str, Any]:
    generator = key(0).generator()
    return {
        "images": 300 * torch.rand(6, 3, 8, 8, generator=generator) - 20,
        "labels": torch.arange(6) % 3,
        "test_images": torch.randint(256, (4, 3, 8, 8), dtype=torch.uint8, generator=generator),
        "test_labels": torch.tensor([0, 1, 2, 0]),
    }


def written(folder: Path, changed: dict[str, Any] | None = None, classes: str = '["a", "b", "c"]') -> Path:
    path = folder / "synthetic.safetensors"
    save_file({**tensors(), **(changed or {})}, path, {"classes": classes})
    return path


def test_round_trip(tmp_path: Path) -> None:
    path, there = written(tmp_path), tensors()
    for root in (tmp_path, path):
        train, test = load("synthetic", root)
        assert torch.equal(train.images, there["images"])
        assert train.images.dtype == torch.float32
        assert torch.equal(train.labels, there["labels"])
        assert torch.equal(test.images, there["test_images"])
        assert torch.equal(test.labels, there["test_labels"])
        assert train.classes == test.classes == ("a", "b", "c")


def test_another_file_is_no_root(tmp_path: Path) -> None:
    (tmp_path / "other.safetensors").write_bytes(written(tmp_path).read_bytes())
    with pytest.raises(DataError, match="root must be a folder that exists"):
        load("synthetic", tmp_path / "other.safetensors")
    with pytest.raises(ArgumentError, match="size must be left out"):
        load("synthetic", tmp_path, size=16)


@pytest.mark.parametrize(
    ("changed", "classes", "message"),
    [
        ({"images": torch.full((6, 3, 8, 8), torch.nan)}, None, "images must be finite"),
        ({"images": torch.zeros(6, 3, 8, 8, dtype=torch.float64)}, None, "images with labels"),
        ({"labels": torch.tensor([0, 1, 2, 3, 0, 1])}, None, "images with labels, got labels must be in"),
        ({"test_images": torch.zeros(4, 3, 8, 8)}, None, "test_images must be uint8"),
        ({"test_images": torch.zeros(4, 3, 8, 4, dtype=torch.uint8)}, None, "test images must be 8x8 pixels"),
        ({}, "[]", "classes must be a JSON list of names"),
        ({}, "[1, 2, 3]", "classes must be a JSON list of names"),
        ({}, "{", "classes must be a JSON list of names"),
    ],
)
def test_damage_is_named(tmp_path: Path, changed: dict[str, Any], classes: str | None, message: str) -> None:
    written(tmp_path, changed, classes or json.dumps(["a", "b", "c"]))
    with pytest.raises(DataError, match=message):
        load("synthetic", tmp_path)


def test_a_part_that_is_missing_and_a_file_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "synthetic.safetensors"
    save_file({"images": tensors()["images"]}, path)
    with pytest.raises(DataError, match="must be a file of images, labels, test_images, test_labels, got images"):
        load("synthetic", tmp_path)
    path.write_bytes(b"not at all")
    with pytest.raises(DataError, match="must be a safetensors file"):
        load("synthetic", tmp_path)


def test_its_floats_can_be_partitioned(tmp_path: Path) -> None:
    """By the bytes of the floats: a row that changes by the least step may move, the others stay."""
    written(tmp_path)
    train, _ = load("synthetic", tmp_path)
    split = DPA(partitions=3).split(train, key(0))
    assert sorted(torch.cat(split.rows).tolist()) == list(range(6))
    homes = {row: i for i, rows in enumerate(split.rows) for row in rows.tolist()}
    train.images[2, 0, 0, 0] = torch.nextafter(train.images[2, 0, 0, 0], torch.tensor(1e9))
    again = DPA(partitions=3).split(train, key(0))
    after = {row: i for i, rows in enumerate(again.rows) for row in rows.tolist()}
    assert {row for row in homes if homes[row] != after[row]} <= {2}
