"""The partitions published with Deep Partition Aggregation, where the original data are: CIFAR-10 and MNIST.

Levine and Feizi, ICLR 2021 (arXiv 2006.14768): the sum of the pixels modulo k, and rows sorted by their pixels, the
last pixel first, then by the label.
"""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from poisonkit import data
from poisonkit.defenses.certified import partition
from poisonkit.random import key
from poisonkit.types import ImageDataset

ROOT = Path(os.environ.get("POISONKIT_DATA", "."))


def cifar() -> ImageDataset:
    if not (ROOT / "cifar-10-batches-py").is_dir():
        pytest.skip("POISONKIT_DATA holds no original CIFAR-10 pickles")
    return data.load("cifar10", ROOT / "cifar-10-batches-py")[0]


def mnist() -> ImageDataset:
    files = [next(ROOT.rglob(f"train-{name}-ubyte.gz"), None) for name in ("images-idx3", "labels-idx1")]
    if None in files:
        pytest.skip("POISONKIT_DATA holds no original MNIST files")
    images, labels = (np.frombuffer(gzip.decompress(file.read_bytes()), np.uint8) for file in files)
    pixels = torch.tensor(images[16:]).view(-1, 1, 28, 28)
    return ImageDataset(pixels, torch.tensor(labels[8:]).long(), tuple(map(str, range(10))))


@pytest.mark.parametrize(
    ("load", "k", "smallest", "largest", "starts"),
    [
        (
            cifar,
            50,
            891,
            1099,
            {0: [134, 735, 49410, 23215, 18335], 1: [44674, 12812, 31935, 10054, 32314]},
        ),
        (cifar, 250, 159, 230, {0: [29684, 25660, 29006, 34033, 33882]}),
        (mnist, 1200, 25, 81, {0: [19105, 39903, 33454, 19206, 6201]}),
    ],
    ids=["cifar-50", "cifar-250", "mnist-1200"],
)
def test_partitions_are_the_published_ones(load, k, smallest, largest, starts) -> None:
    train = load()
    parts = partition(train, k, key=key(0), home="pixel_sum")
    assert (min(parts.sizes), max(parts.sizes)) == (smallest, largest)
    for home, start in starts.items():
        rows = parts.rows[home].sort().values
        pixels = train.images[rows].flatten(1).numpy()
        order = np.lexsort([train.labels[rows].numpy(), *pixels.T])
        assert rows[order[:5].copy()].tolist() == start


def test_channel_means_of_a_partition() -> None:
    train = cifar()
    rows = partition(train, 50, key=key(0), home="pixel_sum").rows[0]
    pixels = train.images[rows].double() / 255
    assert pixels.mean((0, 2, 3)).tolist() == pytest.approx([0.49219525, 0.48137677, 0.44518575], abs=1e-6)
    assert pixels.std((0, 2, 3)).tolist() == pytest.approx([0.24742216, 0.24482834, 0.26144066], abs=1e-5)
