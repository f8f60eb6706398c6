"""What the attacks through features share: networks that are frozen, and distances relative to the victim's length."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from poisonkit.attacks.targeted import Case
from poisonkit.perturb import descend, embedded, frozen


@contextmanager
def centres(models: list[nn.Module], what: Case) -> Iterator[list[Tensor]]:
    """The mean feature [d] of the victims in each model, all of which are frozen in the block."""
    with ExitStack() as stack:
        for model in models:
            stack.enter_context(frozen(model))
        with torch.no_grad():
            found = [embedded(model, what.victims).mean(0) for model in models]
        yield found


def relative(difference: Tensor, centre: Tensor) -> Tensor:
    """The length of ``difference`` over that of ``centre``, both [d]."""
    return difference.square().sum().sqrt() / centre.square().sum().sqrt()


def pull(
    models: list[nn.Module],
    what: Case,
    loss: Callable[[list[Tensor], list[Tensor]], Tensor],
    start: Tensor,
    *,
    steps: int,
    rate: float,
) -> tuple[Tensor, float]:
    """Pixels from ``start`` that lower ``loss``, of the poisons' features [P, d] and the centre [d] in each model."""
    with centres(models, what) as wanted:
        return descend(
            lambda pixels, step: loss([embedded(model, pixels) for model in models], wanted),
            start,
            what.low,
            what.high,
            steps=steps,
            rate=lambda step, steps: rate,
        )
