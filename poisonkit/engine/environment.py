"""What a result depends on besides its inputs: versions, instruction set, threads, device.

The same seed gives other weights on another of these, so a run is resumed only where they agree.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
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
        "matmul_precision": torch.get_float32_matmul_precision(),
        **{name: os.environ.get(name, "not set") for name in _VARIABLES},
        **(_gpu(device) if device.type == "cuda" else {"device": _processor()}),
    }


# Which code path the libraries below torch take
_VARIABLES = ("MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS", "ONEDNN_MAX_CPU_ISA")


def _processor() -> str:
    """The model of the processor: libraries choose their blocks by its maker and its caches."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in text.splitlines() if line.startswith("model name")), "unknown")


def _gpu(device: torch.device) -> dict[str, str | int]:
    """The model of the GPU and what chooses its kernels."""
    return {
        "device": torch.cuda.get_device_name(device),
        "cuda": str(torch.version.cuda),
        "driver": _driver(),
        "cudnn": torch.backends.cudnn.version() or 0,  # type: ignore[no-untyped-call]
        "cudnn_tf32": torch.backends.cudnn.allow_tf32,
        **{name: os.environ.get(name, "not set") for name in ("CUBLAS_WORKSPACE_CONFIG", "NVIDIA_TF32_OVERRIDE")},
    }


def _driver() -> str:
    """The version of NVIDIA's driver, which compiles what was shipped for no particular GPU."""
    try:
        found = re.search(r"Module\s+([\d.]+)", Path("/proc/driver/nvidia/version").read_text())
    except OSError:
        return "unknown"
    return found[1] if found else "unknown"


# What only shows results; a change there leaves artefacts as they are
_SHOWS = ("report", "__main__.py", "page.py")


@cache
def _code() -> str:
    """A digest of the package's own sources and compiled modules, for whoever changes them without a new version."""
    package = Path(__file__).parent.parent
    sha = hashlib.sha256()
    for path in sorted(package.rglob("*")):
        if path.suffix in (".py", ".so") and not set(path.relative_to(package).parts) & set(_SHOWS):
            sha.update(path.read_bytes())
    return sha.hexdigest()[:16]
