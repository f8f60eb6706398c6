"""Files that are written whole or not at all, and known to be whole when they are read."""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from poisonkit.errors import DataError, RunError, fail, require

_DIGEST = "sha256"
_REMEDY = "delete the file to have it computed again"


def write_atomic(path: Path, content: bytes) -> None:
    """Put ``content`` at ``path``; a reader, or a crash at any moment, sees the old file or the new one.

    Raises RunError where the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)  # noqa: PTH105, the name of the atomic call
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise RunError(f"{path} must be writable, got {error}; free space or choose another directory") from error
    finally:
        temporary.unlink(missing_ok=True)


def sweep(path: Path) -> None:
    """Remove what killed writers of ``path`` left beside it. Call it where no other process writes ``path``."""
    for temporary in path.parent.glob(f".{path.name}.*.tmp"):
        temporary.unlink(missing_ok=True)


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors and strings as one safetensors file, with a digest of both, atomically."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    about = dict(metadata or {})
    write_atomic(path, save(plain, {**about, _DIGEST: digest(plain, about)}))


def load_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors :func:`save_tensors` wrote. Raises DataError where the file is not what was written."""
    return load(path)[0]


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and strings :func:`save_tensors` wrote. Raises DataError where the file is not what was written."""
    tensors, metadata = read(path)
    wanted = metadata.pop(_DIGEST, "none")
    whole = digest(tensors, metadata) == wanted
    require(whole, str(path), f"of SHA-256 {wanted}", "other content", _REMEDY, DataError)
    return tensors, metadata


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and strings in a safetensors file, its digest not checked: for a file known to be whole.

    Raises DataError where it is no safetensors file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        fail(str(path), "a whole safetensors file", error, _REMEDY, DataError)


def digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> str:
    """SHA-256 (hex) of tensors and strings, by name."""
    sha = hashlib.sha256(repr(sorted((metadata or {}).items())).encode())
    for name, tensor in sorted(tensors.items()):
        sha.update(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode())
        # By bytes, since numpy knows no bfloat16
        sha.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()
