"""Randomness as a value: a frozen, splittable key, and counter-based streams drawn from it.

No stream depends on how much another drew, on a batch size, a worker, a device, or a global row
index. That is what makes a base model of an ensemble a function of its own rows and seed alone,
which every certificate in this package rests on.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from poisonkit.errors import require

# splitmix64 (Steele, Lea, Flood 2014): increment and the two multipliers of its finaliser, as signed 64-bit
_GAMMA = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)


@dataclass(frozen=True)
class Key:
    """A node in a tree of random streams: a seed and the path of names that leads here."""

    seed: int
    path: tuple[str | int, ...] = ()

    def __post_init__(self) -> None:
        require(0 <= self.seed < 1 << 64, "seed", "in [0, 2^64)", self.seed)

    def child(self, *names: str | int) -> Key:
        """The key below this one; ``child("a", 3)`` is ``child("a").child(3)``."""
        # an index from numpy or torch names the same stream as the plain integer
        plain = tuple(name if isinstance(name, str) else operator.index(name) for name in names)
        return Key(self.seed, self.path + plain)

    def integer(self, bits: int = 64) -> int:
        """A uniform integer of ``bits`` bits, a function of the seed and the path alone."""
        # repr separates 3 from "3" and keeps ("a", "b") apart from ("a, b",)
        text = f"poisonkit/key/v1:{self.seed}:{self.path!r}".encode()
        return int.from_bytes(hashlib.shake_256(text).digest((bits + 7) // 8), "little") & ((1 << bits) - 1)

    def generator(self, device: torch.device | str = "cpu") -> torch.Generator:
        """A fresh torch generator at the start of this key's stream."""
        return torch.Generator(device).manual_seed(self.integer(63))

    def words(self, positions: Tensor, draws: int) -> Tensor:
        """Counter-based random words: int64 ``positions`` [n] -> int64 [n, draws], all 64 bits uniform.

        Word (i, j) depends on this key, ``positions[i]`` and j only, and is the same on every device.
        """
        first, second = _signed(self.integer(64)), _signed(self.child("words").integer(64))
        row = _mix(positions.to(torch.int64) * _GAMMA + first)
        draw = torch.arange(1, draws + 1, device=positions.device, dtype=torch.int64) * _GAMMA
        return _mix((row[:, None] ^ second) + draw)

    def below(self, limits: tuple[int, ...], positions: Tensor) -> Tensor:
        """Random integers: int64 [n, len(limits)], column j uniform in [0, limits[j]), keyed by position."""
        words = _shift(self.words(positions, len(limits)), 1)
        return words % torch.tensor(limits, device=positions.device, dtype=torch.int64)

    def permutation(self, n: int, device: torch.device | str = "cpu") -> Tensor:
        """A uniform permutation of range(n), int64 [n], the same on every device."""
        return torch.argsort(self.words(torch.arange(n, device=device), 1)[:, 0], stable=True)

    @contextmanager
    def ambient(self, devices: tuple[torch.device, ...] = ()) -> Iterator[None]:
        """Run a block with torch's global generators at the start of this stream, then restore them.

        For the code that can only draw from the global generators: layer initialisers and dropout.
        The CPU's is always taken over, and those of the CUDA devices named.
        """
        seed = self.integer(63)
        cuda = [device for device in devices if device.type == "cuda"]
        with torch.random.fork_rng(cuda):
            # not torch.manual_seed, which would reseed every device and so those that are not restored
            torch.default_generator.manual_seed(seed)
            for device in cuda:
                torch.cuda.default_generators[device.index or 0].manual_seed(seed)
            yield


def key(seed: int) -> Key:
    """The root key of a seed in [0, 2^64)."""
    return Key(seed)


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word


def _shift(z: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64 words."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _mix(z: Tensor) -> Tensor:
    z = (z ^ _shift(z, 30)) * _MIX_1
    z = (z ^ _shift(z, 27)) * _MIX_2
    return z ^ _shift(z, 31)
