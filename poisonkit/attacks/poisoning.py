"""The one convention by which every backdoor of this package poisons.

- The budget counts every changed row: the stamped ones, and rows that only get noise (WaNet's).
- Its rate is of all rows, or with ``Budget(per_class=True)`` of the rows of the target class.
- ``rows`` says which rows may be picked: "any", "others" than the target class, or the "target" class itself.
- A picked row gets the label its triggered twin is to be given at test time: the target class (dirty label), the
  class after its own (all-to-all). Rows of the target class keep theirs, so with rows="target" nothing is relabelled
  (clean label).
- The trigger of the goal may be stronger than the one the training rows carry.
- Rows are stamped before the defense sees them, and so before any augmentation. No attack here does otherwise.
- Rows come from ``key.child("rows")``, a random trigger from ``key.child("trigger")``.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from torch import Tensor

from poisonkit.errors import require
from poisonkit.random import Key
from poisonkit.types import Backdoor, Budget, ImageDataset, Poison, Target, Trigger

Rows: TypeAlias = Literal["any", "others", "target"]


def choose(data: ImageDataset, target: Target, budget: Budget, key: Key, rows: Rows) -> Tensor:
    """As many random rows, int64, as ``budget`` allows. Raises ArgumentError where there are not so many to pick."""
    if isinstance(target, int):
        require(0 <= target < data.num_classes, "target", f"a class in [0, {data.num_classes})", target)
    else:
        require(rows == "any", "rows", "'any' where every class is a target", repr(rows))
    count = budget.allowance(data.labels, target)
    order = key.child("rows").permutation(len(data)).to(data.device)
    if rows != "any":
        order = order[(data.labels[order] == target) == (rows == "target")]
    remedy = "lower the rate, or give it per class"
    require(count <= len(order), "rate", f"for at most the {len(order)} rows to pick from", f"{count} rows", remedy)
    return order[:count]


def stamp(
    data: ImageDataset,
    trigger: Trigger,
    target: Target,
    budget: Budget,
    key: Key,
    *,
    rows: Rows = "any",
    at_test: Trigger | None = None,
) -> Poison:
    """Random rows with ``trigger`` and the label that goes with it; ``at_test`` is the goal's trigger if another."""
    goal = Backdoor(at_test or trigger, target)
    chosen = choose(data, target, budget, key, rows)
    images = data.images[chosen]
    return Poison(chosen, trigger(images), goal.wanted(data.labels[chosen]), goal, budget)
