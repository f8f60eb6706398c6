"""``poisonkit hash``: the weighted-sum hash of files and of the rows of arrays."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from poisonkit import ops
from poisonkit.commands.parsing import Commands, no_options
from poisonkit.data.files import read_npy
from poisonkit.errors import DataError, require
from poisonkit.ops.weighted_sum_hash import MAX_DIM


def add(commands: Commands) -> None:
    hashing = commands.add_parser(
        "hash",
        help="weighted-sum hashes of files, or of the rows of a uint8 .npy file",
        description="Two hashes modulo 2^48+21 for each file, its size in bytes and its name; a .npy file of uint8 "
        "rows gives a line a row. Hashes have a collision bound where the seed is kept from whoever makes the files; "
        "they are no cryptographic digests.",
    )
    hashing.add_argument("files", nargs="+", metavar="FILE")
    hashing.add_argument("--seed", type=int, default=0, help="seed of the weights (default: %(default)s)")
    hashing.set_defaults(command=_hash)


def _hash(arguments: argparse.Namespace, options: list[str]) -> None:
    no_options(options)
    for name in arguments.files:
        rows, numbered = _rows(Path(name))
        weights = ops.hash_weights(rows.shape[1], seed=arguments.seed)
        for i, (first, second) in enumerate(ops.weighted_sum_hash(rows, weights).tolist()):
            print(f"{first:015d} {second:015d} {rows.shape[1]} {name}" + (f"[{i}]" if numbered else ""))


def _rows(path: Path) -> tuple[torch.Tensor, bool]:
    """The rows of a uint8 .npy file, or the bytes of any other file as one row; and whether rows are numbered."""
    require(path.is_file(), "FILE", "a file", path, error=DataError)
    if path.suffix == ".npy":
        array = read_npy(path)
        require(
            array.dtype == np.uint8 and array.ndim >= 2, "FILE", "uint8 rows", f"{path}: {array.dtype} {array.shape}"
        )
        return torch.from_numpy(array).flatten(1), True
    size = path.stat().st_size
    require(size <= MAX_DIM, "FILE", f"at most {MAX_DIM:,} bytes", f"{path}: {size:,}", error=DataError)
    content = np.frombuffer(path.read_bytes(), dtype=np.uint8).copy()
    return torch.from_numpy(content)[None], False
