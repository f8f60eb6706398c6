"""The digits that come with the package are scikit-learn's, scaled."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_digits

import poisonkit.data as data


def test_digits_are_the_published_ones_in_order() -> None:
    train, test = data.load("digits")
    bunch = load_digits()
    values = torch.from_numpy(bunch.images.astype(np.int64))
    images = torch.cat([train.images, test.images])[:, 0]
    assert torch.equal(images.long(), (values * 255 + 8) // 16)
    assert torch.equal(torch.cat([train.labels, test.labels]), torch.from_numpy(bunch.target))


def test_digits_split_and_scale() -> None:
    train, test = data.load("digits")
    assert (len(train), len(test)) == (1437, 360)
    assert train.shape == (1, 8, 8)
    assert train.classes == test.classes == tuple("0123456789")
    assert set(train.images.unique().tolist()) == {(v * 255 + 8) // 16 for v in range(17)}
    assert int(train.images.max()) == 255
    assert test.labels.bincount().min() >= 33
    assert train.images[0, 0, 0].tolist() == [0, 0, 80, 207, 143, 16, 0, 0]  # 0 0 5 13 9 1 0 0
