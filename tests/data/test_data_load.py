"""What ``load`` says when it cannot."""

from __future__ import annotations

from pathlib import Path

import pytest

import poisonkit.data as data
from poisonkit.errors import ArgumentError, DataError


def test_names_are_the_published_ones() -> None:
    names = "digits digits-32 cifar10 cifar100 imagenet64 tiny-imagenet tiny-imagenet-50 gtsrb folder parquet synthetic"
    assert sorted(data.DATASETS) == sorted(names.split())
    for dataset in data.DATASETS.values():
        assert dataset.summary
        assert dataset.source
        assert "\n" not in dataset.summary


def test_an_unknown_name_lists_the_known(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"name must be one of digits, .*cifar10, .*, got 'mnist'"):
        data.load("mnist", tmp_path)


@pytest.mark.parametrize("name", sorted(data.DATASETS.keys() - data.EMBEDDED.keys()))
def test_nothing_found_says_where_and_what_for(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=rf"{name} must be a folder of .*, got none in .*; point root at it") as caught:
        data.load(name, str(tmp_path))
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(ArgumentError, match=rf"root must be the folder that holds {name}, got None"):
        data.load(name)
    with pytest.raises(DataError, match="root must be a folder that exists"):
        data.load(name, tmp_path / "none")


def test_size_must_be_possible(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="size must be left out"):
        data.load("digits", size=16)
    with pytest.raises(ArgumentError, match="size must be 1 pixel or more, got 0"):
        data.load("folder", tmp_path, size=0)
