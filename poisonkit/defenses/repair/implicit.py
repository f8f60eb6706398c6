"""The gradient through the solution of an inner problem, where that is a gradient step's fixed point.

Riccardo Grazzi, Luca Franceschi, Massimiliano Pontil, Saverio Salzo, "On the Iteration Complexity of Hypergradient
Computation", ICML 2020, arXiv 2006.16218, section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd import grad


def implicit_gradient(
    inner: Sequence[Callable[[Tensor], Tensor]],
    delta: Tensor,
    parameters: Sequence[Tensor],
    slope: Tensor,
    *,
    steps: int,
    rate: float,
) -> list[Tensor]:
    """(∂Φ/∂θ)ᵀ v, what the gradient of H lacks to be that of θ ↦ H(δ(θ), θ): a tensor for each of ``parameters``.

    inner  functions of δ that sum to g
    slope  ∂H/∂δ
    steps  K, the terms of the series of v
    rate   η, the step of Φ
    """

    def along(v: Tensor, variables: Sequence[Tensor]) -> list[Tensor]:
        """The derivative of ∇g · v by each of ``variables``."""
        sums = [torch.zeros_like(variable) for variable in variables]
        for part in inner:
            (first,) = grad(part(delta), delta, create_graph=True)
            for total, second in zip(sums, grad(first, variables, v, materialize_grads=True), strict=True):
                total += second
        return sums

    v = torch.zeros_like(slope)
    for _ in range(steps):
        v = v - rate * along(v, [delta])[0] + slope
    return [-rate * mixed for mixed in along(v, parameters)]
