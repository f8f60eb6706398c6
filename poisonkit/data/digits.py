"""The 1,797 handwritten digits of the UCI repository, which come with the package."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from poisonkit.types import ImageDataset

TRAIN_ROWS = 1437


def read_digits() -> tuple[ImageDataset, ImageDataset]:
    """(train, test): 1,437 and 360 images uint8 [N, 1, 8, 8], classes "0" to "9".

    The file's values v = 0..16 become (v · 255 + 8) // 16, the nearest of 0..255. The split keeps the file's order:
    its first 1,437 rows are for training and its last 360 (33 to 37 of each class) for testing.

    Source: Alpaydin, Kaynak, Optical Recognition of Handwritten Digits, UCI, doi:10.24432/C50P49, CC BY 4.0.
    """
    with np.load(Path(__file__).with_name("digits.npz"), allow_pickle=False) as file:
        values, labels = torch.from_numpy(file["images"]), torch.from_numpy(file["labels"])
    images = ((values.int() * 255 + 8) // 16).to(torch.uint8)[:, None]
    data = ImageDataset(images, labels.long(), tuple("0123456789"))
    rows = torch.arange(len(data))
    return data.take(rows[:TRAIN_ROWS]), data.take(rows[TRAIN_ROWS:])


def read_digits_32() -> tuple[ImageDataset, ImageDataset]:
    """The same as photographs come: uint8 [N, 3, 32, 32], every pixel four by four times, in three equal channels."""
    train, test = read_digits()
    return _enlarged(train), _enlarged(test)


def _enlarged(data: ImageDataset) -> ImageDataset:
    images = data.images.repeat_interleave(4, 2).repeat_interleave(4, 3).expand(-1, 3, -1, -1)
    return ImageDataset(images.contiguous(), data.labels, data.classes)
