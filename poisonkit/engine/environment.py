"""What a result depends on besides its inputs: versions, instruction set, threads, device.

The same seed gives other weights on another of these, so a run is resumed only where they agree.
"""

from __future__ import annotations

import hashlib
import os
import platform
from functools import cache
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from poisonkit import ops


def environment(device: torch.device | str = "cpu") -> dict[str, str | int]:
    """The fingerprint recorded in a run's manifest."""
    device = torch.device(device)
    return {
        "poisonkit": version("poisonkit"),
        "code": _code(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "cpu": platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "hash_isa": ops.isas()[-1],
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "mkl_cbwr": os.environ.get("MKL_CBWR", "not set"),
    }


# What only shows results; a change there leaves artefacts as they are
_SHOWS = ("report", "commands", "__main__.py", "page.py")


@cache
def _code() -> str:
    """A digest of the package's own sources and compiled modules, for whoever changes them without a new version."""
    package = Path(__file__).parent.parent
    sha = hashlib.sha256()
    for path in sorted(package.rglob("*")):
        if path.suffix in (".py", ".so") and not set(path.relative_to(package).parts) & set(_SHOWS):
            sha.update(path.read_bytes())
    return sha.hexdigest()[:16]
