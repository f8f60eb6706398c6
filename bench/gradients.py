"""Rows like the gradients that EPIC selects from."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def gradients(n: int, classes: int, modes: int = 12, seed: int = 0) -> Tensor:
    """p - y of n rows of class 0 in mid-training: float32 [n, classes].

    Each of the modes has two rival classes; with ten classes five rows in six are classified right.
    """
    generator = np.random.default_rng(seed)
    centres = generator.normal(0, 1, (modes, classes))
    centres[:, 0] += generator.normal(6.2 if classes == 10 else 12, 1.2, modes)
    rivals = generator.integers(1, classes, (modes, 2))
    centres[np.arange(modes)[:, None], rivals] += generator.uniform(1, 3, (modes, 2))
    noise = generator.normal(size=(n, classes)) * generator.gamma(2, 0.6, (n, 1))
    rows = torch.from_numpy(centres[generator.integers(modes, size=n)] + noise).softmax(1)
    rows[:, 0] -= 1
    return rows.float()
