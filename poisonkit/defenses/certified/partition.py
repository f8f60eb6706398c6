"""Which rows each base model sees, and in which order: functions of the rows' contents alone.

Wang and Feizi, arXiv 2306.16415, section 4.1 and Definition 4.1: a row belongs to partition
h₀ mod k, where h₀ and h₁ are weighted sums of its bytes modulo the first prime above 2^48, and the
rows of a partition are sorted by (h₀, h₁). Rows that agree in both are sorted by their bytes and
then their label, so that the order is a function of the set of rows even where an attacker who knows
the weights forges a collision.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from poisonkit import mapped, ops
from poisonkit.errors import require
from poisonkit.random import Key
from poisonkit.types import ImageDataset

Hash = Literal["weighted_sum", "pixel_sum"]


@dataclass(frozen=True, eq=False)
class Split:
    """Which rows each base model sees, and what is to be remembered of how they were chosen.

    rows        one int64 tensor of row indices for each base model, in training order
    total       rows of the data set
    shifts      bucket h of the rows feeds the base models (h + s) mod n for every shift s; (0,) for disjoint parts
    collisions  rows that hash like an earlier row but differ from it
    duplicates  rows equal to an earlier row, label included
    """

    rows: tuple[Tensor, ...]
    total: int
    shifts: tuple[int, ...] = (0,)
    collisions: int = 0
    duplicates: int = 0

    @property
    def sizes(self) -> list[int]:
        return [len(rows) for rows in self.rows]

    def tensors(self) -> dict[str, Tensor]:
        """All of it as tensors, to be kept with a run."""
        numbers = {
            "sizes": self.sizes,
            "total": self.total,
            "shifts": self.shifts,
            "collisions": self.collisions,
            "duplicates": self.duplicates,
        }
        return {"rows": torch.cat(self.rows), **{name: torch.tensor(value) for name, value in numbers.items()}}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Split:
        """The split that :meth:`tensors` wrote down."""
        rows = torch.split(tensors["rows"], tensors["sizes"].tolist())
        shifts = tuple(tensors["shifts"].tolist())
        return cls(rows, int(tensors["total"]), shifts, int(tensors["collisions"]), int(tensors["duplicates"]))


def partition(
    data: ImageDataset,
    buckets: int,
    *,
    key: Key,
    shifts: tuple[int, ...] = (0,),
    home: Hash = "weighted_sum",
    hash_label: bool = False,
) -> Split:
    """Spread ``data`` over ``buckets`` by content; base model i sees the buckets (i - s) mod ``buckets``.

    key         the weights are drawn from it, independently of the data
    home        what is taken modulo k: ``weighted_sum`` (h₀), or ``pixel_sum``, the sum of the pixels
                of Levine and Feizi (ICLR 2021), which an attacker steers by adding one grey level
    hash_label  append the label's eight little-endian bytes to the image before hashing; a changed
                label then hits two partitions instead of one
    """
    require(buckets >= 1, "buckets", "at least 1", buckets)
    flat = data.images.flatten(1)
    if flat.dtype != torch.uint8:
        flat = flat.contiguous().view(torch.uint8)  # the floats of a synthetic set, byte by byte
    first, second = hashes(flat, data.labels, key, hash_label).cpu().numpy().T
    address = first if home == "weighted_sum" else _pixel_sum(flat, data.labels, hash_label).cpu().numpy()
    order = np.lexsort((second, first))
    collisions, duplicates = _break_ties(order, first, second, data)
    homes = (address % buckets)[order]
    by_home = np.argsort(homes, kind="stable")
    places = np.split(by_home, np.searchsorted(homes[by_home], np.arange(1, buckets)))
    fed = ([places[(i - shift) % buckets] for shift in shifts] for i in range(buckets))
    rows = tuple(torch.from_numpy(order[np.sort(np.concatenate(parts))]) for parts in fed)
    return Split(rows, len(data), shifts, collisions, duplicates)


def hashes(flat: Tensor, labels: Tensor, key: Key, hash_label: bool) -> Tensor:
    """Two weighted-sum hashes of each row: uint8 [N, D] -> int64 [N, 2]."""
    dim = flat.shape[1]
    weights = ops.hash_weights(dim + 8 * hash_label, seed=key.integer(64)).to(flat.device)
    image = _row_hashes(flat, weights[:, :dim].contiguous())
    if not hash_label:
        return image
    # the hash is linear: the appended bytes are hashed alone and added
    return (image + ops.weighted_sum_hash(_label_bytes(labels), weights[:, dim:].contiguous())) % ops.HASH_PRIME


def _row_hashes(flat: Tensor, weights: Tensor) -> Tensor:
    return torch.cat([ops.weighted_sum_hash(piece, weights) for piece in mapped.pieces(flat)])


def _pixel_sum(flat: Tensor, labels: Tensor, hash_label: bool) -> Tensor:
    """Sum of the bytes of each row; below p for every row the hash takes, so weights of one are exact."""
    ones = torch.ones(1, flat.shape[1], dtype=torch.int64, device=flat.device)
    total = _row_hashes(flat, ones)[:, 0]
    return total + _label_bytes(labels).sum(1) if hash_label else total


def _label_bytes(labels: Tensor) -> Tensor:
    """int64 [N] to uint8 [N, 8], little-endian on every machine."""
    return (labels[:, None] >> torch.arange(0, 64, 8, device=labels.device) & 255).to(torch.uint8)


def _break_ties(order: np.ndarray, first: np.ndarray, second: np.ndarray, data: ImageDataset) -> tuple[int, int]:
    """Sort each run of equal hashes in place by (bytes, label); count (collisions, duplicates)."""
    same = (first[order[1:]] == first[order[:-1]]) & (second[order[1:]] == second[order[:-1]])
    edges = np.flatnonzero(np.diff(np.concatenate([[0], same.astype(np.int8), [0]])))
    collisions = duplicates = 0
    for start, stop in zip(edges[::2], edges[1::2] + 1, strict=True):
        run = order[start:stop]
        seen: dict[bytes, bytes] = {}  # equal images are kept once: a run may be a million of them
        images = (data.images[row].cpu().numpy().tobytes() for row in run)
        content = {
            row: (seen.setdefault(image, image), int(data.labels[row])) for row, image in zip(run, images, strict=True)
        }
        order[start:stop] = sorted(run, key=content.__getitem__)
        duplicates += len(run) - len(set(content.values()))
        collisions += len(seen) - 1
    return collisions, duplicates
