"""The files of the poisoning benchmark: who attacks whom in its trials, and the poisons that others made for them.

Schwarzschild, Goldblum, Gupta, Dickerson and Goldstein, "Just How Toxic is Data Poisoning? A Unified Benchmark for
Backdoor and Data Poisoning Attacks", arXiv 2006.12557, 2021; https://github.com/aks2203/poisoning-benchmark.

A file of setups is a pickled list of dictionaries. A trial is a folder of three pickles: ``poisons`` (a list of pairs
of picture and label), ``base_indices`` (the training rows they stand for), ``target`` (the picture to be misclassified
and its true class; for a backdoor also the patch, 3×h×w in [0, 1], and where it lies, [column, row]).
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from poisonkit.data.decode import pil_image
from poisonkit.data.files import expect
from poisonkit.data.restricted import read_value
from poisonkit.errors import require
from poisonkit.train.checkpoints import write_atomic
from poisonkit.types import Budget, ImageDataset, Poison, Victims

# What the benchmark allows: 1 % of the rows, labels as they are, eight pixel steps
ALLOWED = Budget(0.01, eps=8.0, clean_label=True)


@dataclass(frozen=True, eq=False)
class Setup:
    """A trial: row ``victim`` of the test set, of ``victim_class``, is to be classified as ``target``.

    rows  int64 [P], the rows of the training set, of class ``target``, that may be changed
    """

    victim: int
    victim_class: int
    target: int
    rows: Tensor

    def victims(self, test: ImageDataset) -> ImageDataset:
        """The pool of images that an attack is given: one."""
        require(self.victim < len(test), "test images", f"more than {self.victim}", len(test))
        found = test.take(torch.tensor([self.victim]))
        known = int(found.labels) == self.victim_class
        require(known, f"test image {self.victim}", f"of class {self.victim_class}", int(found.labels))
        return found


def read_setups(path: Path) -> list[Setup]:
    """The trials in the file ``path``. Raises DataError where it is not one of the benchmark's."""
    found = read_value(path, "list of setups")
    expect(isinstance(found, list), path, "a list of setups", f"a {type(found).__name__}")
    return [_setup(path, i, each) for i, each in enumerate(found)]


def read_trial(folder: Path, budget: Budget = ALLOWED) -> Poison:
    """The poison in the files of ``folder``, with the ``budget`` that ``Poison.apply`` is to hold it to.

    Raises DataError where the files are not those of a trial.
    """
    poisons = read_value(folder / "poisons.pickle", "list of poisons")
    pairs = isinstance(poisons, list) and len(poisons) > 0 and all(_pair(each) for each in poisons)
    expect(pairs, folder / "poisons.pickle", "a list of pictures with labels", type(poisons).__name__)
    shapes = {picture.shape for picture, _ in poisons}
    expect(len(shapes) == 1, folder / "poisons.pickle", "pictures of one size", f"{len(shapes)} sizes")
    rows = _rows(folder / "base_indices.pickle", read_value(folder / "base_indices.pickle", "list of rows"))
    expect(len(rows) == len(poisons), folder / "base_indices.pickle", f"{len(poisons)} rows", len(rows))
    images = torch.from_numpy(np.stack([_channels(picture) for picture, _ in poisons]))
    labels = torch.tensor([label for _, label in poisons])
    victim = _victim(folder / "target.pickle", read_value(folder / "target.pickle", "picture and class"))
    return Poison(rows, images, labels, Victims(victim, labels[:1].clone()), budget)


def write_trial(folder: Path, poison: Poison, victim_class: int) -> None:
    """Write ``poison``, of one victim whose true class is ``victim_class``, as the benchmark reads it.

    Its trainer holds it to :data:`ALLOWED`, whatever budget it was made for. Raises ArgumentError where the goal is not
    one victim, or one of the poisons has another label than it is to be given.
    """
    goal = poison.goal
    alone = isinstance(goal, Victims) and len(goal.labels) == 1
    require(alone, "goal", "one victim", goal)
    assert isinstance(goal, Victims)
    same = bool((poison.labels.cpu() == goal.labels.cpu()).all())
    require(same, "labels", f"all {int(goal.labels)}, as the victim is to be classified", "others")
    folder.mkdir(parents=True, exist_ok=True)
    pictures = [_picture(image) for image in poison.images]
    contents: dict[str, Any] = {
        "poisons": list(zip(pictures, poison.labels.tolist(), strict=True)),
        "base_indices": poison.rows.tolist(),
        "target": (_picture(goal.images[0]), victim_class),
    }
    for name, content in contents.items():
        write_atomic(folder / f"{name}.pickle", pickle.dumps(content, protocol=4))


def _setup(path: Path, i: int, found: Any) -> Setup:
    names = ("target class", "target index", "base class")
    fits = isinstance(found, dict) and all(_whole(found.get(name)) for name in names) and "base indices" in found
    expect(fits, f"{path}: setup {i}", f"a dictionary with {', '.join(names)} and base indices", found)
    rows = _rows(path, found["base indices"])
    return Setup(found["target index"], found["target class"], found["base class"], rows)


def _rows(path: Path, found: Any) -> Tensor:
    if isinstance(found, np.ndarray) and found.ndim == 1 and found.dtype.kind in "iu":
        found = found.tolist()
    whole = isinstance(found, list | tuple) and all(_whole(row) for row in found)
    expect(whole, path, "row indices, whole and not negative", type(found).__name__)
    return torch.tensor(found, dtype=torch.int64)


def _victim(path: Path, found: Any) -> Tensor:
    """uint8 [1, C, H, W], with the patch of a backdoor on it."""
    fits = isinstance(found, tuple) and len(found) in (2, 4) and _pair(found[:2])
    expect(fits, path, "a picture and its class, and for a backdoor a patch and its place", type(found).__name__)
    image = _channels(found[0])
    if len(found) == 4:
        patch, place = found[2:]
        inside = isinstance(patch, np.ndarray) and patch.ndim == 3 and len(patch) == len(image) and len(place) == 2
        expect(inside and all(_whole(at) for at in place), path, "a patch as an array, with [column, row]", place)
        left, top = place
        (_, h, w), (_, height, width) = patch.shape, image.shape
        expect(top + h <= height and left + w <= width, path, f"a patch inside {height}x{width}", f"{h}x{w} at {place}")
        image[:, top : top + h, left : left + w] = (255 * patch.astype(np.float64)).clip(0, 255)
    return torch.from_numpy(image)[None]


def _pair(found: Any) -> bool:
    return isinstance(found, tuple) and len(found) == 2 and isinstance(found[0], np.ndarray) and _whole(found[1])


def _whole(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _channels(picture: Any) -> Any:
    """A writable uint8 [C, H, W] of [H, W] or [H, W, C]."""
    expect(picture.dtype == np.uint8 and picture.ndim in (2, 3), "a picture", "of uint8 pixels", picture.dtype)
    return np.array(picture[None] if picture.ndim == 2 else np.moveaxis(picture, 2, 0))


def _picture(image: Tensor) -> Any:
    pixels = image.cpu().numpy()
    return pil_image().fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(np.moveaxis(pixels, 0, 2)))
