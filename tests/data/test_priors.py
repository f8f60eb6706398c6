"""The imbalanced subsets have the sizes the papers print, and one is a part of the flatter other."""

from __future__ import annotations

import pytest
import torch

from poisonkit.data.priors import PRIORS, Prior
from poisonkit.errors import ArgumentError
from poisonkit.random import key
from poisonkit.types import ImageDataset


def balanced(rows: int, classes: int) -> ImageDataset:
    """Images of one pixel, which hold the number of their row."""
    labels = torch.arange(rows * classes) % classes
    images = torch.arange(rows * classes, dtype=torch.float32)[:, None, None, None]
    return ImageDataset(images, labels, tuple(map(str, range(classes))))


@pytest.mark.parametrize(
    ("name", "rows", "classes", "total"),
    [
        ("lt-100", 5000, 10, 12406),  # CIFAR-10
        ("lt-10", 5000, 10, 20431),
        ("step-100", 5000, 10, 25250),
        ("step-10", 5000, 10, 27500),
        ("lt-100", 500, 100, 10847),  # CIFAR-100
        ("lt-10", 500, 100, 19573),
        ("step-100", 500, 100, 25250),
        ("step-10", 500, 100, 27500),
    ],
)
def test_published_sizes(name: str, rows: int, classes: int, total: int) -> None:
    assert sum(PRIORS[name].counts(rows, classes)) == total


def test_classes_of_cifar10_with_a_long_tail() -> None:
    assert PRIORS["lt-100"].counts(5000, 10) == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]


@pytest.mark.parametrize("classes", [1, 2, 5])
def test_counts_at_the_edges(classes: int) -> None:
    for shape in ("lt", "step"):
        assert Prior(shape, 1).counts(7, classes) == [7] * classes
        counts = Prior(shape, 100).counts(1000, classes)
        assert counts[0] == 1000
        assert counts[-1] == (10 if classes > 1 else 1000)


def test_subset() -> None:
    data = balanced(200, 4)
    steep, flat = (PRIORS[name](data, key=key(0)) for name in ("lt-100", "lt-10"))
    assert torch.bincount(steep.labels).tolist() == PRIORS["lt-100"].counts(200, 4) == [200, 43, 9, 2]
    rows = [part.images.flatten().long() for part in (steep, flat)]
    assert (rows[0].diff() > 0).all(), "the order of the data set is kept"
    assert torch.equal(data.labels[rows[0]], steep.labels)
    assert set(rows[0].tolist()) < set(rows[1].tolist())
    assert not torch.equal(rows[0], PRIORS["lt-100"](data, key=key(1)).images.flatten().long())


def test_what_a_class_keeps_depends_on_no_other() -> None:
    data = balanced(50, 3)
    moved = data.take(torch.cat([(data.labels == label).nonzero()[:, 0] for label in (2, 1, 0)]))
    one, other = (PRIORS["lt-10"](part, key=key(0)) for part in (data, moved))
    assert sorted(one.images.flatten().tolist()) == sorted(other.images.flatten().tolist())


def test_errors() -> None:
    with pytest.raises(ArgumentError, match="shape must be 'lt' or 'step', got 'linear'"):
        Prior("linear")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="ratio must be 1 or more, got 0"):
        Prior("lt", 0)
    with pytest.raises(ArgumentError, match="data must be of every class, got a class without rows"):
        Prior()(ImageDataset(torch.zeros(1, 1, 1, 1), torch.tensor([0]), ("a", "b")), key=key(0))
