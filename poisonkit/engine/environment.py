"""What a result depends on besides its inputs: versions, instruction set, threads, device.

The same seed gives other weights on another of these, so a run is resumed only where they agree.
"""

from __future__ import annotations

import os
import platform
from importlib.metadata import version

import numpy as np
import torch

from poisonkit import ops


def environment(device: torch.device | str = "cpu") -> dict[str, str | int]:
    """The fingerprint recorded in a run's manifest."""
    device = torch.device(device)
    return {
        "poisonkit": version("poisonkit"),
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
