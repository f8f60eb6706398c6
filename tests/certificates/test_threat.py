"""From an attacker's actions to partitions hit."""

from __future__ import annotations

import pytest

from poisonkit.certificates import hits
from poisonkit.errors import ArgumentError


@pytest.mark.parametrize(
    ("actions", "expected"),
    [
        ({}, 0),
        ({"insert": 3}, 3),
        ({"delete": 3}, 3),
        ({"replace": 3}, 6),
        ({"flip": 3}, 3),
        ({"flip": 3, "hash_label": True}, 6),
        ({"insert": 1, "delete": 2, "replace": 3, "flip": 4, "hash_label": True}, 17),
    ],
)
def test_hits(actions: dict, expected: int) -> None:
    assert hits(**actions) == expected


def test_rejects() -> None:
    with pytest.raises(ArgumentError, match="flip must be 0 or more rows, got -1"):
        hits(flip=-1)
