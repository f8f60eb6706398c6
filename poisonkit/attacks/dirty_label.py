"""What dirty-label backdoors share: stamp random rows of any class and give them the target's label."""

from __future__ import annotations

import torch

from poisonkit.errors import require
from poisonkit.random import Key
from poisonkit.types import Backdoor, Budget, ImageDataset, Poison, Trigger


def stamp(data: ImageDataset, trigger: Trigger, target: int, budget: Budget, key: Key) -> Poison:
    """Stamp as many random rows as ``budget`` allows and label them ``target``.

    The trigger is in place before the defense hashes the rows and before augmentation.
    """
    require(0 <= target < data.num_classes, "target", f"a class in [0, {data.num_classes})", target)
    rows = key.child("rows").permutation(len(data))[: budget.rows(len(data))].to(data.device)
    return Poison(
        rows=rows,
        images=trigger(data.images[rows]),
        labels=torch.full_like(data.labels[rows], target),
        goal=Backdoor(trigger, target),
        budget=budget,
    )
