"""The weighted-sum hash that assigns a sample to its partition.

Wang and Feizi, "On Practical Aspects of Aggregation Defenses against Data Poisoning Attacks", 2023,
arXiv:2306.16415, Definition 4.1.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from poisonkit.errors import ArgumentError, require
from poisonkit.ops.native import core
from poisonkit.ops.registry import Arguments, Reject, op

#: p of the hash, the least prime above 2^48
HASH_PRIME = (1 << 48) + 21
MAX_DIM = 1 << 20


def hash_weights(dim: int, seed: int = 0, vectors: int = 2) -> Tensor:
    """Random weights for ``weighted_sum_hash``: int64 [vectors, dim], uniform in [0, HASH_PRIME).

    They come from SHAKE-256, so they are the same everywhere. Row j depends on ``seed`` in [0, 2^64) and j alone, and
    a shorter row is the start of a longer one. One vector has a collision among the 1.28 million images of ImageNet
    with probability 0.003, two with 1e-17.

    Raises ``ArgumentError`` unless 0 <= dim <= 2^20 and vectors >= 1.
    """
    require(0 <= dim <= MAX_DIM, "dim", f"in [0, {MAX_DIM}]", dim)
    require(0 <= seed < 1 << 64, "seed", "in [0, 2^64)", seed)
    require(vectors >= 1, "vectors", "at least 1", vectors)
    rows = [_stream(dim, seed, vector) for vector in range(vectors)]
    return torch.from_numpy(np.stack(rows))


def _stream(dim: int, seed: int, vector: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    shake = hashlib.shake_256(b"poisonkit/weighted-sum/v1" + seed.to_bytes(8, "little") + vector.to_bytes(8, "little"))
    words = dim + 8  # one word in 65 000 is rejected
    while True:
        drawn = np.frombuffer(shake.digest(8 * words), dtype="<u8")
        accepted = drawn[drawn < np.uint64(65535 * HASH_PRIME)]  # else small residues would come up more often
        if len(accepted) >= dim:
            return (accepted[:dim] % np.uint64(HASH_PRIME)).astype(np.int64)
        words += dim // 1000 + 8


def _check(x: Tensor, weights: Tensor) -> None:
    require(x.dtype == torch.uint8, "x", "uint8", x.dtype, "hash other types by their bits: x.view(torch.uint8)")
    require(x.dim() == 2, "x", "of shape [N, D]", list(x.shape), "flatten each sample: x.flatten(1)")
    require(weights.dtype == torch.int64, "weights", "int64", weights.dtype, "see ops.hash_weights")
    require(weights.dim() == 2, "weights", "of shape [V, D]", list(weights.shape), "see ops.hash_weights")
    require(
        weights.shape[1] == x.shape[1],
        "weights",
        f"of shape [V, {x.shape[1]}] like x",
        list(weights.shape),
        f"ops.hash_weights({x.shape[1]}) gives such weights",
    )
    require(weights.shape[0] >= 1, "weights", "at least one vector", list(weights.shape), "see ops.hash_weights")
    require(x.shape[1] <= MAX_DIM, "x", f"at most {MAX_DIM} bytes wide", x.shape[1], "sum the hashes of its parts")
    require(weights.device == x.device, "weights", f"on {x.device} like x", weights.device, "move them with .to()")


def _check_values(x: Tensor, weights: Tensor) -> None:
    if weights.numel():
        low, high = (int(end) for end in torch.stack(weights.aminmax()).tolist())
        require(low >= 0 and high < HASH_PRIME, "weights", "in [0, 2^48 + 21)", f"[{low}, {high}]")


def _fake(x: Tensor, weights: Tensor) -> Tensor:
    return weights.new_empty((x.shape[0], weights.shape[0]))


def _native(x: Tensor, weights: Tensor, *, isa: str, threads: int) -> Tensor:
    (rows, dim), vectors = x.shape, weights.shape[0]
    assert core is not None
    if dim > 1 and x.stride(1) != 1:
        x = x.contiguous()
    weights = weights.contiguous()
    hashes = weights.new_empty((rows, vectors))
    core.weighted_sum_hash(
        x.data_ptr(), rows, dim, x.stride(0), weights.data_ptr(), vectors, hashes.data_ptr(), isa, threads
    )
    return hashes


def _samples() -> Iterator[Arguments]:
    generator = torch.Generator().manual_seed(0)

    def bytes_(*shape: int) -> Tensor:
        return torch.randint(256, shape, generator=generator, dtype=torch.uint8)

    for rows, dim, vectors in [(0, 5, 2), (3, 0, 2), (1, 1, 1), (17, 65, 2), (5, 3, 3), (33, 784, 1), (19, 4099, 5)]:
        yield bytes_(rows, dim), hash_weights(dim, seed=1, vectors=vectors)
    weights = hash_weights(100)
    yield bytes_(20, 200)[:, ::2], weights  # not contiguous
    yield bytes_(20, 200)[::2, 50:150], weights  # rows apart
    yield bytes_(100, 20).T, weights
    yield bytes_(1, 100).expand(18, 100), weights.T.contiguous().T
    # the largest sums, and weights around every edge of the digits: 0, 2^47, the 21 residues from 2^48 on and the 21
    # at the two balanced ranges' ends
    edges = [0, 1, (1 << 47) - 1, 1 << 47, HASH_PRIME - 2, HASH_PRIME - 1]
    for start in (1 << 48, (1 << 48) - 0x808080808080, (1 << 48) - 0x800080008000):
        edges += range(start - 2, start + 23)
    extreme = torch.tensor([w for w in edges if w < HASH_PRIME])
    yield torch.full((17, len(extreme)), 255, dtype=torch.uint8), torch.stack([extreme, extreme.flip(0)])
    yield torch.full((2, 70000), 255, dtype=torch.uint8), torch.full((2, 70000), HASH_PRIME - 1)


_REJECTS = tuple(
    Reject(args, ArgumentError, match)
    for args, match in (
        (lambda: (torch.zeros(2, 3), hash_weights(3)), "x must be uint8"),
        (lambda: (_zeros(2, 3, 1), hash_weights(3)), "x must be of shape [N, D]"),
        (lambda: (_zeros(2, 3), hash_weights(3).int()), "weights must be int64"),
        (lambda: (_zeros(2, 3), hash_weights(3)[0]), "weights must be of shape [V, D]"),
        (lambda: (_zeros(2, 3), hash_weights(4)), "weights must be of shape [V, 3] like x"),
        (lambda: (_zeros(2, 3), hash_weights(3)[:0]), "weights must be at least one vector"),
        (lambda: (_zeros(2, 3), hash_weights(3) - HASH_PRIME), "weights must be in [0, 2^48 + 21)"),
        (lambda: (_zeros(2, 3), torch.full((1, 3), HASH_PRIME)), "weights must be in [0, 2^48 + 21)"),
        (lambda: (_zeros(1, MAX_DIM + 1), _zeros(1, MAX_DIM + 1).long()), "x must be at most 1048576 bytes wide"),
    )
)


def _zeros(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.uint8)


@op(
    check=_check,
    check_values=_check_values,
    fake=_fake,
    samples=_samples,
    rejects=_REJECTS,
    native=_native,
    isas=("scalar", "avx2", "avx512_vnni", "amx"),
    triton="poisonkit.ops.weighted_sum_hash_triton",
)
def weighted_sum_hash(x: Tensor, weights: Tensor) -> Tensor:
    """Hash every row of bytes with every weight vector: ``h[n, v] = sum_d weights[v, d] x[n, d] mod HASH_PRIME``.

    ``x``: uint8 [N, D], D <= 2^20, only read; rows may lie apart. ``weights``: int64 [V, D] in [0, HASH_PRIME), on the
    device of ``x``, from ``hash_weights``. Returns int64 [N, V] in [0, HASH_PRIME), exact on every device. Raises
    ``ArgumentError`` for anything else.

    Float images hash by their bits, ``images.flatten(1).view(torch.uint8)``: 0.0 and -0.0 then differ, and so do an
    image in uint8 and the same image in float. The hash knows bytes alone: mix label, shape and dtype in yourself.
    Two different rows collide with probability 1/HASH_PRIME per vector, provided that the weights were drawn
    independently of the data. The hash is linear: who knows the weights can make collisions, so keep them secret, or
    draw them once the data is fixed.

    Source: Wang and Feizi 2023 (arXiv:2306.16415), Definition 4.1.
    """
    # Halves of 24 and 25 bits: sums of at most 2^20 products with a byte stay below 2^53, exact in float64.
    halves = torch.cat([weights >> 24, weights & 0xFFFFFF]).double().T
    vectors = weights.shape[0]
    hashes = weights.new_empty((x.shape[0], vectors))
    step = max(1, (1 << 22) // max(1, x.shape[1]))
    for start in range(0, x.shape[0], step):
        sums = (x[start : start + step].double() @ halves).long()
        high, low = sums[:, :vectors], sums[:, vectors:]
        # 2^48 = -21 (mod p), so high 2^24 = (high mod 2^24) 2^24 - 21 (high div 2^24)
        hashes[start : start + step] = (((high & 0xFFFFFF) << 24) - 21 * (high >> 24) + low) % HASH_PRIME
    return hashes
