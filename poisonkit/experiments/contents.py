"""What each network was trained on, as a digest: two jobs of one digest give one network, bit for bit."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from poisonkit import mapped
from poisonkit.train import Job
from poisonkit.types import ImageDataset

# the tensor of a split that holds them
CONTENTS = "contents"


def digests(jobs: Sequence[Job]) -> Tensor:
    """SHA-256 of the rows of each job in their order, its recipe and its key: uint8 [n, 32].

    The jobs are of one data set, which is read once.
    """
    rows = _row_digests(jobs[0].data)
    about = jobs[0].data.shape, jobs[0].data.classes
    found = []
    for job in jobs:
        sha = hashlib.sha256(repr((about, job.recipe, job.key)).encode())
        sha.update(rows[job.rows.cpu().numpy()].tobytes())
        found.append(np.frombuffer(sha.digest(), dtype=np.uint8))
    return torch.from_numpy(np.stack(found))


def _row_digests(data: ImageDataset) -> np.ndarray:
    """SHA-256 of the pixels and the label of every row, uint8 [N, 32]."""
    found = np.empty((len(data), 32), dtype=np.uint8)
    labels = data.labels.cpu().numpy().astype("<i8")
    place = 0
    for piece in mapped.pieces(data.images):
        for pixels in piece.cpu().contiguous().numpy():
            sha = hashlib.sha256(pixels.data)
            sha.update(labels[place].tobytes())
            found[place] = np.frombuffer(sha.digest(), dtype=np.uint8)
            place += 1
    return found
