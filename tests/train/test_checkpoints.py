"""Files are whole or not there, and damage is noticed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from poisonkit.errors import DataError, RunError
from poisonkit.train.checkpoints import load, load_tensors, save_tensors, sweep, write_atomic

TENSORS = {
    "weights": torch.arange(6, dtype=torch.float32).view(2, 3).t(),  # not contiguous
    "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "count": torch.tensor(7),
    "none": torch.empty(0, 3, dtype=torch.uint8),
}


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_tensors(path, TENSORS, {"recipe": "Ä 1"})
    tensors, metadata = load(path)
    assert metadata == {"recipe": "Ä 1"}
    assert tensors.keys() == TENSORS.keys() == load_tensors(path).keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)


def test_every_flipped_bit_and_every_truncation_is_noticed(tmp_path: Path) -> None:
    path, damaged = tmp_path / "x.safetensors", tmp_path / "damaged.safetensors"
    save_tensors(path, {"w": torch.tensor([1.0, 2.0]), "n": torch.tensor(3)}, {"epochs": "4"})
    content = path.read_bytes()
    for length in range(len(content)):
        damaged.write_bytes(content[:length])
        with pytest.raises(DataError, match="delete the file"):
            load_tensors(damaged)
    for bit in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        damaged.write_bytes(flipped)
        with pytest.raises(DataError, match="delete the file"):
            load_tensors(damaged)


def test_safetensors_without_a_digest_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"w": torch.zeros(2)}, tmp_path / "x.safetensors")
    with pytest.raises(DataError, match="SHA-256"):
        load_tensors(tmp_path / "x.safetensors")


def test_write_replaces_and_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_atomic(path, b"one")
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(RunError, match="must be writable"):
        write_atomic(folder, b"a file cannot replace a folder")
    with pytest.raises(RunError, match="must be writable"):
        write_atomic(tmp_path / "missing" / "a.json", b"")
    assert list(tmp_path.iterdir()) == [folder]


def test_sweep_removes_only_what_writers_of_that_file_left(tmp_path: Path) -> None:
    for name in (".a.json.0f.tmp", ".b.json.0f.tmp", "a.json", "a.tmp"):
        (tmp_path / name).touch()
    sweep(tmp_path / "a.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".b.json.0f.tmp", "a.json", "a.tmp"]
