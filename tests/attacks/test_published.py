"""Trials of the poisoning benchmark, in its own layout: read as written, refused where they are something else."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from poisonkit.attacks import BullseyePolytope
from poisonkit.attacks.published import ALLOWED, read_setups, read_trial, write_trial
from poisonkit.errors import ArgumentError, BudgetError, DataError
from poisonkit.random import key
from poisonkit.types import Backdoor, Budget, ImageDataset, Poison, Victims

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")

SETUP = {"target class": 7, "target index": 2, "base class": 3, "base indices": np.array([5, 1, 8])}


def some(n: int, seed: int = 0) -> ImageDataset:
    images = torch.randint(0, 256, (n, 3, 4, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return ImageDataset(images, torch.full((n,), 3), tuple("abcdefgh"))


def put(folder: Path, protocol: int = 4, **parts: Any) -> Path:
    """The three files, as the benchmark's own instructions write them."""
    data = some(10)
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in data.images]
    contents = {
        "poisons": [(picture, 3) for picture in pictures[:3]],
        "base_indices": np.array([5, 1, 8]),
        "target": (pictures[9], 7),
        **parts,
    }
    for name, content in contents.items():
        (folder / f"{name}.pickle").write_bytes(pickle.dumps(content, protocol))
    return folder


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("number", [int, np.int64, np.int32])
def test_setups_read_as_written(tmp_path: Path, protocol: int, number: Any) -> None:
    setup = {**SETUP, "target index": number(2), "base class": number(3), "target class": number(7)}
    path = tmp_path / "setups.pickle"
    path.write_bytes(pickle.dumps([setup, {**setup, "base indices": [number(4)]}], protocol))
    one, two = read_setups(path)
    assert (one.victim, one.victim_class, one.target, one.rows.tolist()) == (2, 7, 3, [5, 1, 8])
    assert two.rows.tolist() == [4]


def test_the_victim_of_a_setup(tmp_path: Path) -> None:
    (tmp_path / "s").write_bytes(pickle.dumps([SETUP]))
    [setup] = read_setups(tmp_path / "s")
    test = some(3)
    with pytest.raises(ArgumentError, match="test image 2 must be of class 7, got 3"):
        setup.victims(test)
    test.labels[2] = 7
    assert torch.equal(setup.victims(test).images, test.images[2:])
    with pytest.raises(ArgumentError, match="test images must be more than 2, got 2"):
        setup.victims(some(2))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("rows", [np.array([5, 1, 8]), [5, 1, 8], [np.int64(5), np.int64(1), np.int64(8)]])
def test_a_trial_reads_as_written(tmp_path: Path, protocol: int, rows: Any) -> None:
    poison = read_trial(put(tmp_path, protocol, base_indices=rows))
    assert poison.rows.tolist() == [5, 1, 8]
    assert torch.equal(poison.images, some(10).images[:3])
    assert poison.labels.tolist() == [3, 3, 3]
    assert isinstance(poison.goal, Victims)
    assert torch.equal(poison.goal.images, some(10).images[9:])
    assert poison.goal.labels.tolist() == [3]
    assert poison.budget == ALLOWED


def test_a_trial_is_held_to_the_benchmarks_budget(tmp_path: Path) -> None:
    put(tmp_path)
    data = some(300)
    data.images[torch.tensor([5, 1, 8])] = some(10).images[:3]
    data.images[5, 0, 0, 0] = (int(data.images[5, 0, 0, 0]) + 128) % 256
    with pytest.raises(BudgetError, match=r"pixel change must be at most 8.0, got 128"):
        read_trial(tmp_path).apply(data)
    with pytest.raises(BudgetError, match="poisoned rows must be at most 2"):
        read_trial(tmp_path).apply(data.take(torch.arange(200)))
    assert torch.equal(read_trial(tmp_path, Budget(0.01)).apply(data).images[5], some(10).images[0])


@pytest.mark.parametrize("patch", [np.float32, np.float64])
def test_the_target_of_a_backdoor_carries_its_patch(tmp_path: Path, patch: Any) -> None:
    square = np.stack([np.full((2, 2), value, patch) for value in (0.0, 0.5, 1.0)])
    image = Image.fromarray(np.full((4, 6, 3), 9, np.uint8))
    poison = read_trial(put(tmp_path, target=(image, 7, square, [4, 1])))
    assert isinstance(poison.goal, Victims)
    assert poison.goal.images[0, 1].tolist() == [[9] * 6, *[[9, 9, 9, 9, 127, 127]] * 2, [9] * 6]
    assert poison.goal.images[0, :, 1, 5].tolist() == [0, 127, 255]


def test_ours_are_written_as_theirs(tmp_path: Path) -> None:
    data, test = some(40), some(8, seed=1)
    test.labels[:] = 7
    poison = BullseyePolytope(target=3)(
        data,
        Budget(0.1),
        key=key(0),
        victims=test,
        state={
            "rows": torch.tensor([4, 2]),
            "images": some(2, 2).images,
            "victims": test.images[3:4],
            "loss": torch.zeros(1),
        },
    )
    write_trial(tmp_path / "0", poison, 7)
    again = read_trial(tmp_path / "0", poison.budget)
    for part in ("rows", "images", "labels"):
        assert torch.equal(getattr(again, part), getattr(poison, part))
    assert torch.equal(again.goal.images, poison.goal.images)
    # and as plain pickle reads them, which is how the benchmark does
    found = {name: pickle.loads((tmp_path / "0" / f"{name}.pickle").read_bytes()) for name in ("poisons", "target")}
    assert [label for _, label in found["poisons"]] == [3, 3]
    picture, label = found["target"]
    assert label == 7
    assert torch.equal(torch.from_numpy(np.array(picture)).permute(2, 0, 1), test.images[3])


def test_grey_pictures_are_written_and_read(tmp_path: Path) -> None:
    images = torch.arange(48, dtype=torch.uint8).view(2, 1, 4, 6)
    poison = Poison(torch.tensor([1]), images[:1], torch.tensor([0]), Victims(images[1:], torch.tensor([0])), ALLOWED)
    write_trial(tmp_path, poison, 1)
    assert torch.equal(read_trial(tmp_path).images, images[:1])


@pytest.mark.parametrize(
    ("goal", "message"),
    [
        (Backdoor(lambda images: images, 3), "goal must be one victim"),
        (Victims(some(2).images, torch.tensor([3, 3])), "goal must be one victim"),
        (Victims(some(1).images, torch.tensor([4])), "labels must be all 4"),
    ],
)
def test_what_the_benchmark_cannot_say_is_not_written(tmp_path: Path, goal: Any, message: str) -> None:
    poison = Poison(torch.tensor([1]), some(1).images, torch.tensor([3]), goal, ALLOWED)
    with pytest.raises(ArgumentError, match=message):
        write_trial(tmp_path / "0", poison, 7)
    assert not (tmp_path / "0").exists()


PICTURE = Image.new("RGB", (6, 4))


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"poisons": []}, "poisons.pickle must be a list of pictures with labels"),
        ({"poisons": [(PICTURE, "cat")]}, "poisons.pickle must be a list of pictures with labels"),
        ({"poisons": [(PICTURE, 3), (Image.new("RGB", (5, 4)), 3)]}, "poisons.pickle must be pictures of one size"),
        ({"poisons": [(Image.new("P", (6, 4)), 3)]}, "a picture must be grey or RGB"),
        ({"poisons": [(np.zeros((4, 6, 3)), 3) for _ in range(3)]}, "a picture must be of uint8 pixels"),
        ({"base_indices": [1, 2]}, "base_indices.pickle must be 3 rows, got 2"),
        ({"base_indices": [1, 2, -3]}, "base_indices.pickle must be row indices, whole and not negative"),
        ({"base_indices": [1, 2, 0.5]}, "base_indices.pickle must be row indices, whole and not negative"),
        ({"target": PICTURE}, "target.pickle must be a picture and its class"),
        ({"target": (PICTURE, 7, np.zeros((3, 2, 2)), [5, 1])}, "target.pickle must be a patch inside 4x6, got 2x2"),
        ({"target": (PICTURE, 7, torch.zeros(3, 2, 2), [4, 1])}, "a data pickle must be made of plain arrays"),
        ({"target": (PICTURE, 7, [[1.0]], [4, 1])}, "target.pickle must be a patch as an array"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, parts: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_trial(put(tmp_path, **parts))


@pytest.mark.parametrize("content", [{"a": 1}, [3], [{**SETUP, "base class": "cat"}], [{"target class": 1}]])
def test_other_setups_are_refused(tmp_path: Path, content: Any) -> None:
    (tmp_path / "s").write_bytes(pickle.dumps(content))
    with pytest.raises(DataError, match="must be"):
        read_setups(tmp_path / "s")


class Harm:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["poisons", "base_indices", "target"])
def test_a_trial_that_is_a_program_does_nothing(tmp_path: Path, name: str) -> None:
    made = tmp_path / "made"
    with pytest.raises(DataError, match="must be"):
        read_trial(put(tmp_path, **{name: [(Harm(made), 3)]}))
    assert not made.exists()


@pytest.mark.parametrize(
    "state", [[{}, "RGB", (6, 4), None, b"short"], [{}, "RGB", (1 << 40, 4), None, b""], [], {"size": (6, 4)}, None]
)
def test_pictures_are_as_large_as_their_bytes(tmp_path: Path, state: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path)
    monkeypatch.setattr(Image.Image, "__getstate__", lambda self: state)
    (tmp_path / "target.pickle").write_bytes(pickle.dumps((PICTURE, 7), 4))
    with pytest.raises(DataError, match=r"target.pickle(:| must be) "):
        read_trial(tmp_path)
