"""Letters are what they look like, all different, and of one size."""

from __future__ import annotations

import pytest

from poisonkit import font
from poisonkit.errors import ArgumentError


def test_letters_by_eye() -> None:
    drawn = ["".join(".#"[dot] for dot in row) for row in font.line("l4").int().tolist()]
    assert drawn == [
        "#........#.",
        "#.......##.",
        "#......#.#.",
        "#.....#..#.",
        "#.....#####",
        "#........#.",
        "#####....#.",
    ]


def test_every_letter_differs() -> None:
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.× "
    assert len({font.line(letter).numpy().tobytes() for letter in letters}) == len(letters)
    assert font.line(letters).shape == (7, 6 * len(letters) - 1)
    with pytest.raises(ArgumentError, match=r"text must be of the letters .*, got !É"):
        font.line("h!é")
