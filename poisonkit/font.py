"""Letters of 5×7 pixels, for captions in pictures and for the watermark of a trigger."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from poisonkit.errors import require

WIDTH = 5
# Seven rows from the top; the highest of five bits is the left pixel.
_GLYPHS: dict[str, tuple[int, ...]] = {
    " ": (0, 0, 0, 0, 0, 0, 0),
    "A": (14, 17, 17, 31, 17, 17, 17),
    "B": (30, 17, 17, 30, 17, 17, 30),
    "C": (14, 17, 16, 16, 16, 17, 14),
    "D": (30, 17, 17, 17, 17, 17, 30),
    "E": (31, 16, 16, 30, 16, 16, 31),
    "F": (31, 16, 16, 30, 16, 16, 16),
    "G": (14, 17, 16, 23, 17, 17, 14),
    "H": (17, 17, 17, 31, 17, 17, 17),
    "I": (14, 4, 4, 4, 4, 4, 14),
    "J": (7, 2, 2, 2, 2, 18, 12),
    "K": (17, 18, 20, 24, 20, 18, 17),
    "L": (16, 16, 16, 16, 16, 16, 31),
    "M": (17, 27, 21, 21, 17, 17, 17),
    "N": (17, 25, 21, 21, 19, 17, 17),
    "O": (14, 17, 17, 17, 17, 17, 14),
    "P": (30, 17, 17, 30, 16, 16, 16),
    "Q": (14, 17, 17, 17, 21, 18, 13),
    "R": (30, 17, 17, 30, 20, 18, 17),
    "S": (15, 16, 16, 14, 1, 1, 30),
    "T": (31, 4, 4, 4, 4, 4, 4),
    "U": (17, 17, 17, 17, 17, 17, 14),
    "V": (17, 17, 17, 17, 10, 10, 4),
    "W": (17, 17, 17, 21, 21, 27, 17),
    "X": (17, 17, 10, 4, 10, 17, 17),
    "Y": (17, 17, 10, 4, 4, 4, 4),
    "Z": (31, 1, 2, 4, 8, 16, 31),
    "0": (14, 17, 19, 21, 25, 17, 14),
    "1": (4, 12, 4, 4, 4, 4, 14),
    "2": (14, 17, 1, 6, 8, 16, 31),
    "3": (14, 17, 1, 6, 1, 17, 14),
    "4": (2, 6, 10, 18, 31, 2, 2),
    "5": (31, 16, 30, 1, 1, 17, 14),
    "6": (6, 8, 16, 30, 17, 17, 14),
    "7": (31, 1, 2, 4, 8, 8, 8),
    "8": (14, 17, 17, 14, 17, 17, 14),
    "9": (14, 17, 17, 15, 1, 2, 12),
    "_": (0, 0, 0, 0, 0, 0, 31),
    "-": (0, 0, 0, 14, 0, 0, 0),
    ".": (0, 0, 0, 0, 0, 12, 12),
    "×": (0, 17, 10, 4, 10, 17, 0),
}


def line(text: str) -> Tensor:
    """``text`` in capitals as ink, bool [7, 6·len(text) - 1]. Raises ArgumentError for a letter that is not there."""
    require(len(text) > 0, "text", "one letter or more", "none")
    missing = sorted(set(text.upper()) - _GLYPHS.keys())
    require(not missing, "text", f"of the letters {''.join(_GLYPHS)}", "".join(missing))
    rows = torch.tensor([_GLYPHS[letter] for letter in text.upper()])  # [letters, 7]
    bits = rows[:, :, None] >> torch.arange(WIDTH - 1, -1, -1) & 1
    return pad(bits, (0, 1)).permute(1, 0, 2).flatten(1)[:, :-1].bool()
